"""The servers and the bare call that benchmarks/serving.py compares, each in a process of its own."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from measure import ROOT
from serving_load import HttpSender

_ENV = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}


class BareCall:
    """The model without a server; see bare_call.py."""

    def __init__(self, model: Path, image: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "benchmarks/bare_call.py", model, image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_ENV,
        )
        self._read()

    def cpu_seconds(self, calls: int) -> float:
        """Of one call at batch 1."""
        return float(self._ask({"calls": calls}))

    def images_per_second(self, batch: int, seconds: float) -> float:
        """Of two threads that call one after the other."""
        return float(self._ask({"batch": batch, "seconds": seconds}))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def plain_fastapi(model: Path, image: bytes) -> Iterator[tuple[psutil.Process, HttpSender]]:
    """FastAPI around tf.saved_model.load."""
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "plain_fastapi:app", f"--port={port}", "--no-access-log"]
    body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]})
    with _server(command, port, {"MODEL": str(model)}, ROOT / "benchmarks") as process:
        yield process, HttpSender(port, "/predict", body.encode())


@contextmanager
def mlflow_serve(model: Path, image: bytes, folder: Path) -> Iterator[tuple[psutil.Process, HttpSender]]:
    """`mlflow models serve` of a pyfunc. Runs outside the repository, whose folder mlflow/ is not the library."""
    port, packed = _free_port(), folder / "mlflow-model"
    script = ROOT / "benchmarks/mlflow_model.py"
    subprocess.run(
        [sys.executable, script, model, packed], check=True, cwd=folder, env=_ENV, capture_output=True
    )
    program = Path(sys.executable).with_name("mlflow")
    command = [str(program), "models", "serve", "-m", str(packed), "-p", str(port), "--env-manager=local"]
    table = {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}
    # It starts `uvicorn` from PATH.
    path = f"{program.parent}:{os.environ['PATH']}"
    with _server(command, port, {"PATH": path}, folder) as process:
        yield process, HttpSender(port, "/invocations", json.dumps({"dataframe_split": table}).encode())


@contextmanager
def bentoml_serve(model: Path, image: bytes) -> Iterator[tuple[psutil.Process, HttpSender]]:
    """`bentoml serve` in an environment of its own: no version of the last years resolves beside ours."""
    port, home = _free_port(), ROOT / "build/bentoml"
    if not (home / "bin/bentoml").exists():
        uv, python = Path(sys.executable).with_name("uv"), sys.version_info
        versions = [f"tensorflow=={version('tensorflow')}", "bentoml"]
        for step in (
            ("venv", f"--python={python.major}.{python.minor}", home),
            ("pip", "install", f"--python={home}/bin/python", *versions),
        ):
            subprocess.run([uv, "--quiet", *step], check=True)
    command = [
        f"{home}/bin/bentoml",
        "serve",
        "bento_service:Classifier",
        f"--port={port}",
        "--host=127.0.0.1",
    ]
    body = json.dumps({"images": [base64.b64encode(image).decode()]})
    told = {"MODEL": str(model), "BENTOML_DO_NOT_TRACK": "True", "PATH": f"{home}/bin:{os.environ['PATH']}"}
    with _server(command, port, told, ROOT / "benchmarks", health="/readyz") as process:
        yield process, HttpSender(port, "/predict", body.encode())


@contextmanager
def _server(
    command: list[str], port: int, env: dict[str, str], cwd: Path, *, health: str = "/ping"
) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        command, cwd=cwd, env={**_ENV, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    family = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + 180
        while not _answers(port, health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(map(str, command))} did not start")
            time.sleep(0.2)
        yield family
    finally:
        for member in [*family.children(recursive=True), family]:
            try:
                member.terminate()
            except psutil.NoSuchProcess:
                continue
        process.wait()


def _answers(port: int, health: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
