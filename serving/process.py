"""The embedded server in a process of its own, for those who need one for a while: parity and blessing
stages, tests.

with ServerProcess("digits", Path(".isthmus/serving/digits")) as server:
    Client(port=server.grpc_port).predict("digits", {"image_bytes": ...})
"""

import json
import logging
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from isthmus.serving.errors import ServingError

__all__ = ["ServerProcess"]

logger = logging.getLogger(__name__)


class ServerProcess:
    """A context manager: starts `python -m isthmus.serving` on loopback and free ports; leaving it stops the
    server.

    Entering returns once the model's first version is AVAILABLE (the server opens its ports only then).

    Args:
        model_name: name under which the model is served.
        base_path: folder with numbered version folders.
        start_timeout_s: how long the start may take, TensorFlow's import (5 to 25 s) and the load included.
        stop_timeout_s: how long requests in flight may take after the SIGTERM; then the process is killed.
        log_path: where the server's stderr goes; by default a temporary file, removed when all went well.
        flags: further flags of the server, such as ["--enable_batching=true"].

    Raises:
        ServingError: the server died (with its own error text) or had no version available in time.
    """

    def __init__(
        self,
        model_name: str,
        base_path: Path | str,
        *,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 15.0,
        log_path: Path | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.model_name = model_name
        self.base_path = Path(base_path)
        self.start_timeout_s = start_timeout_s
        self.stop_timeout_s = stop_timeout_s
        self.flags = tuple(flags)
        self.host = "127.0.0.1"
        self.grpc_port = 0
        self.rest_port = 0
        self.admin_port: int | None = None
        self._keeps_log = log_path is not None
        self._given_log_path = log_path
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The file that takes the server's stderr."""
        assert self._log is not None, "the server was never started"
        return Path(self._log.name)

    def command(self) -> list[str]:
        """The command line that starts the server."""
        import os

        return [
            sys.executable,
            "-m",
            "isthmus.serving",
            "--host=127.0.0.1",
            "--port=0",
            "--rest_api_port=0",
            f"--model_name={self.model_name}",
            f"--model_base_path={self.base_path.absolute()}",
            "--max_num_load_retries=0",
            f"--drain_seconds={self.stop_timeout_s}",
            f"--parent_pid={os.getpid()}",
            *self.flags,
        ]

    def __enter__(self) -> "ServerProcess":
        if self._given_log_path is not None:
            self._given_log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._given_log_path.open("wb")
        else:
            self._log = tempfile.NamedTemporaryFile(prefix="isthmus-serving-", suffix=".log", delete=False)
        self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log
        )
        try:
            announced = self._wait_for_announcement()
            self.grpc_port, self.rest_port = announced["grpc_port"], announced["rest_port"]
            self.admin_port = announced.get("admin_port")
        except BaseException:
            self._keeps_log = True
            self.stop()
            raise
        logger.debug(
            "server of %s: pid %d, gRPC %d, REST %d",
            self.model_name,
            self.pid,
            self.grpc_port,
            self.rest_port,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None:
            self._keeps_log = True
        if not self._keeps_log:
            self.log_path.unlink(missing_ok=True)

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, *, num_lines: int = 12) -> str:
        """The last lines of the server's stderr."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def _wait_for_announcement(self) -> dict[str, int]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + self.start_timeout_s
        pipe, received = self._process.stdout, b""
        while b"\n" not in received:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ServingError(
                    f"no version of {self.model_name!r} became available within {self.start_timeout_s:g} s; "
                    f"versions are numbered folders with a saved_model.pb under {self.base_path}; "
                    f"the server's log: {self.log_path}\n{self.log_tail(num_lines=4)}"
                )
            readable, _, _ = select.select([pipe], [], [], min(remaining, 1.0))
            if not readable:
                continue
            chunk = pipe.read1(65536)  # type: ignore[attr-defined]
            if not chunk:
                raise ServingError(self._death_notice())
            received += chunk
        announced: dict[str, int] = json.loads(received.split(b"\n", 1)[0])
        return announced

    def _death_notice(self) -> str:
        assert self._process is not None
        exit_code = self._process.wait(timeout=self.stop_timeout_s)
        errors = [
            line.removeprefix("error: ")
            for line in self.log_path.read_text(errors="replace").splitlines()
            if line.startswith("error: ")
        ]
        reason = errors[-1] if errors else self.log_tail()
        return (
            f"the model server of {self.model_name!r} stopped with exit code {exit_code}: {reason} "
            f"(its log: {self.log_path})"
        )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed in time."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=self.stop_timeout_s + 5)
            except subprocess.TimeoutExpired:
                logger.warning("the server of %s did not stop after SIGTERM and is killed", self.model_name)
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if self._log is not None:
            self._log.close()
