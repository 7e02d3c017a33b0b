"""How the export's processes talk: a folder with request.json in, and result.json or error.json out.

So no process ever holds torch and TensorFlow at once, and each half can run in a container of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.export.errors import ExportError
from isthmus.lineage.files import canonical_json, read_json, write_json

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 10
_POLL_SECONDS = 0.02
_PROGRESS_SECONDS = 0.2


def serve_job(
    arguments: list[str],
    work: Callable[[Path, dict[str, Any]], dict[str, Any]],
    *,
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """The child's side: run `work(folder, request)` and leave its result, or its error, in the folder.

    `prepare` (the imports) runs at once, then request.json is waited for. Returns the exit code. Any failure
    but an ExportError is a bug: its traceback goes to the log.
    """
    if len(arguments) != 1:
        print("usage: python -m <module> <job folder with request.json>", file=sys.stderr)
        return 2
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    folder = Path(arguments[0])
    try:
        prepare()
        while not (folder / "request.json").is_file():
            time.sleep(_POLL_SECONDS)
        result = work(folder, read_json(folder / "request.json"))
        write_json(folder / "result.json", {**result, "peak_memory_bytes": _peak_memory_bytes()})
    except Exception as error:  # noqa: BLE001 - the one place where a child's failure becomes a file
        traceback.print_exc()
        expected = isinstance(error, ExportError)
        write_json(
            folder / "error.json",
            {
                "error": str(error) if expected else f"{type(error).__name__}: {error}",
                "exit_code": getattr(error, "exit_code", 70),
                "expected": expected,
                "peak_memory_bytes": _peak_memory_bytes(),
            },
        )
        return int(getattr(error, "exit_code", 70))
    return 0


def _peak_memory_bytes() -> int:
    """The most that this process has had resident (getrusage would count its parent's, too)."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def append_progress(folder: Path, value: dict[str, Any]) -> None:
    """The child's side: tell the parent something before the result is complete."""
    with open(folder / "progress.jsonl", "a", encoding="utf-8") as file:
        file.write(canonical_json(value) + "\n")


@dataclass(kw_only=True, frozen=True)
class JobRunner:
    """The parent's side: starts `python -m <module> <folder>` and waits for its answer."""

    log_path: Path
    """Everything that the children write on stdout and stderr is appended here."""

    timeout_s: float
    """A child that takes longer is stopped."""

    keep_open: tuple[int, ...] = ()
    """File descriptors that children inherit: the lock on the staging folder they work in."""

    def run(self, module: str, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
        """Run one job to its end and return its result; see `Job.answer` for what it raises."""
        with self.start(module, folder) as job:
            job.send(request)
            return job.answer()

    def start(self, module: str, folder: Path) -> Job:
        """Start a job's process. Until its request is sent it imports what it needs."""
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "ab") as output:
            output.write(f"\n=== python -m {module} {folder}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self.keep_open,
            )
        return Job(module=module, folder=folder, runner=self, process=process)


@dataclass(kw_only=True, frozen=True)
class Job:
    """A running job. As a context manager it never outlives its `with` block."""

    module: str
    folder: Path
    runner: JobRunner
    process: subprocess.Popen[bytes]

    def send(self, request: dict[str, Any]) -> None:
        """Give the process its work."""
        write_json(self.folder / "request.json", request)

    def answer(self, *, on_progress: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """Wait for the result; `on_progress` gets each value that the job tells in between.

        Raises:
            ExportError: The job refused, crashed, was killed or took too long; the text says which.
        """
        code = self._wait(on_progress)
        if code == 0 and (self.folder / "result.json").is_file():
            return dict(read_json(self.folder / "result.json"))
        if (self.folder / "error.json").is_file():
            answer = read_json(self.folder / "error.json")
            if answer.get("expected"):
                raise ExportError(answer["error"])
            where = self.runner.log_path
            raise ExportError(f"{self.module} failed: {answer['error']}; the traceback is in {where}")
        raise ExportError(f"{self.module} {_death(code)}; see {self.runner.log_path}")

    def _wait(self, on_progress: Callable[[dict[str, Any]], None]) -> int:
        deadline = time.monotonic() + self.runner.timeout_s
        told = 0
        while True:
            code = self.process.poll()
            progress = self.folder / "progress.jsonl"
            lines = progress.read_text(encoding="utf-8").split("\n")[:-1] if progress.is_file() else []
            for line in lines[told:]:
                on_progress(json.loads(line))
            told = len(lines)
            if code is not None:
                return code
            if time.monotonic() > deadline:
                raise ExportError(
                    f"{self.module} took longer than {self.runner.timeout_s:.0f} s and was stopped; "
                    f"raise export.stage_timeout_s or see {self.runner.log_path}"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=_PROGRESS_SECONDS)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self.process)


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no result"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is gone (kill -9 included).

    A server that this process started watches it in turn.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # As an exception, so that what this process started (a server) is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
