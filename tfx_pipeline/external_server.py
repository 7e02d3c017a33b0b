"""A model server that is not the embedded one: a TensorFlow Serving binary, or a container image of one.

with ExternalServer(binary_command("/usr/bin/tensorflow_model_server"), model_name="digits", saved_model=...) as server:
    GrpcQuestions(port=server.grpc_port, ...)

Only what TensorFlow Serving documents is used: its flags, its REST status and its exit code.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from isthmus.tfx_pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

_ENGINES = ("docker", "podman")
_STOP_TIMEOUT_S = 20.0
_NUM_LOG_LINES = 4
# What the engines say of a container that `--rm` has removed, or is removing.
_ALREADY_GONE = ("no such container", "already in progress")

Command = Callable[["ExternalServer"], list[str]]


def binary_command(binary: str) -> Command:
    """The command that starts a binary with tensorflow_model_server's flags.

    Raises:
        PipelineError: There is no such executable.
    """
    found = shutil.which(binary)
    if found is None:
        raise PipelineError(
            f"no executable at pipeline.server.binary {binary}; give the path of tensorflow_model_server, "
            "or leave it out for the embedded server"
        )
    return lambda server: [found, *server.flags(str(server.base_path))]


def image_command(image: str) -> Command:
    """The command that runs a container whose entry point takes tensorflow_model_server's flags.

    On the host's network: the ports are the flags', as with a binary. The model is mounted read-only.

    Raises:
        PipelineError: Neither Docker nor Podman is there.
    """
    engine = next(filter(None, map(shutil.which, _ENGINES)), None)
    if engine is None:
        raise PipelineError(
            f"pipeline.server.image {image} needs {' or '.join(_ENGINES)} on PATH, and there is neither; "
            "give pipeline.server.binary, or leave both out for the embedded server"
        )

    def command(server: ExternalServer) -> list[str]:
        inside = f"/models/{server.model_name}"
        return [
            *(engine, "run", "--rm", "--network=host", f"--name={server.container}"),
            f"--volume={server.saved_model}:{inside}/1:ro",
            image,
            *server.flags(inside),
        ]

    return command


class ExternalServer:
    """A context manager: entering returns when the model is AVAILABLE, leaving it stops the server.

    Args:
        command: See `binary_command` and `image_command`.
        model_name: Name under which the model is served.
        saved_model: The SavedModel, served as version 1.
        start_timeout_s: How long the start may take, the load included.

    Raises:
        PipelineError: The server ended, or has no model in time; the text has the end of its log.
    """

    def __init__(
        self, command: Command, *, model_name: str, saved_model: Path, start_timeout_s: float
    ) -> None:
        self.model_name, self.saved_model = model_name, saved_model.resolve()
        self.grpc_port, self.rest_port = _free_ports(2)
        self.container = f"isthmus-{os.getpid()}-{self.rest_port}"
        self._command, self._start_timeout_s = command, start_timeout_s
        self._arguments: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="isthmus-server-")
        self.base_path = Path(self._folder.name, "base")
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def flags(self, base_path: str) -> list[str]:
        """tensorflow_model_server's."""
        return [
            f"--port={self.grpc_port}",
            f"--rest_api_port={self.rest_port}",
            f"--model_name={self.model_name}",
            f"--model_base_path={base_path}",
        ]

    @property
    def pid(self) -> int:
        """The process of the server; of a container the process inside, as this machine numbers it."""
        assert self._process is not None, "the server is not started"
        if not self._is_container:
            return self._process.pid
        inspected = self._engine("inspect", "--format={{.State.Pid}}", self.container)
        return int(inspected.stdout) if inspected.stdout.strip().isdecimal() else self._process.pid

    @property
    def _is_container(self) -> bool:
        return Path(self._arguments[0]).name in _ENGINES

    def _engine(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Docker's or Podman's answer to a short command."""
        return subprocess.run(
            [self._arguments[0], *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_STOP_TIMEOUT_S,
            check=False,
        )

    def __enter__(self) -> ExternalServer:
        self.base_path.mkdir()
        os.symlink(self.saved_model, self.base_path / "1")
        self._log = Path(self._folder.name, "log").open("wb")
        try:
            self._arguments = self._command(self)
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
            )
            self._wait()
        except OSError as error:
            self.stop()
            raise PipelineError(f"the model server cannot be started: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed in time; a container is removed.

        The process of a container is only the engine's client: it hands SIGTERM on to the container's first process,
        which in tensorflow/serving is a shell that ignores it, and when the client is killed the container serves on.
        """
        process = self._process
        if process is not None:
            is_container = self._is_container
            if is_container:
                self._remove_container()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if is_container:
                    # A client that was still at work may have made it in the meantime.
                    self._remove_container()
            self._process = None
        if self._log is not None:
            self._log.close()
        self._folder.cleanup()

    def _remove_container(self) -> None:
        try:
            removed = self._engine("rm", "-f", self.container)
            problem = " ".join(removed.stderr.split()) if removed.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if problem and not any(words in problem.lower() for words in _ALREADY_GONE):
            logger.warning(
                "the container %s could not be removed and may serve on: %s", self.container, problem[:300]
            )

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while (state := self._state()) != "AVAILABLE":
            if self._process.poll() is not None:
                raise PipelineError(
                    f"the model server stopped with exit code {self._process.returncode}: {self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"the model server had no model within {self._start_timeout_s:g} s (its state: "
                    f"{state or 'no answer over REST'}): {self._log_tail()}"
                )
            time.sleep(0.2)

    def _state(self) -> str:
        url = f"http://127.0.0.1:{self.rest_port}/v1/models/{self.model_name}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(json.load(answer)["model_version_status"][0]["state"])
        except (OSError, ValueError, KeyError, IndexError):
            return ""

    def _log_tail(self) -> str:
        text = Path(self._folder.name, "log").read_text(errors="replace")
        return " ".join(" ".join(text.splitlines()[-_NUM_LOG_LINES:]).split())[-600:] or "it said nothing"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def peak_memory_mb(pid: int) -> float:
    """Largest resident memory (VmHWM), in 10⁶ bytes, of a process and of its children, each at its own peak.

    Raises:
        PipelineError: The process is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError as error:
        raise PipelineError(f"the memory of the server cannot be measured: {error}") from error
    kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return kib * 1024 / 1e6 + sum(peak_memory_mb(child) for child in children)
