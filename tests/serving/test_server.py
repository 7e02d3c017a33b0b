"""The server as a process: start, failures, hot reload under load, drain, retries."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from isthmus.serving.client import GrpcClient, RestClient
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.process import ServerProcess
from isthmus.serving.status import Code

X = np.array([1.0, 2.0], np.float32)
PARALLELISM = ("session", "intra_op", "inter_op")


@pytest.fixture(scope="module")
def base(models_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with version 1 of half_plus_n."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(models_root / "half_plus_n" / "1", base / "1")
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[ServerProcess]:
    """A server of that base path that looks for versions ten times a second."""
    with ServerProcess("half", base, flags=["--file_system_poll_wait_seconds=0.1"]) as server:
        yield server


def run_server(*flags: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [sys.executable, "-m", "isthmus.serving", *flags]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s)


def push(source: Path, base: Path, version: str) -> None:
    """Publish a version as an exporter does: copied beside, then renamed."""
    shutil.copytree(source, base / f".tmp-{version}")
    (base / f".tmp-{version}").rename(base / version)


def wait_for(client: RestClient, states: list[tuple[int, str]], timeout_s: float = 30) -> None:
    """Until the model's versions are in these states."""
    deadline = time.monotonic() + timeout_s
    while (seen := [(s.version, s.state) for s in client.status("half")]) != states:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


# ---- both clients against it ----


@pytest.mark.parametrize("wire", ["grpc", "rest"])
def test_clients(server: ServerProcess, wire: str) -> None:
    client = GrpcClient(port=server.grpc_port) if wire == "grpc" else RestClient(port=server.rest_port)
    with client:
        (answer,) = client.predict("half", {"x": X}).items()
        assert answer[0] == "y"
        np.testing.assert_array_equal(answer[1], np.array([1.5, 2.0], np.float32))
        assert answer[1].dtype == np.float32
        assert client.predict("half", {"x": [1, 2.0]}, version=1)["y"].tolist() == [1.5, 2.0]
        assert [(s.version, s.state, s.error_code) for s in client.status("half")] == [(1, "AVAILABLE", "OK")]
        assert client.wait_until_available("half") == 1
        signature = client.metadata("half")["serving_default"]
        assert signature.inputs["x"].shape == (-1,)
        assert signature.outputs["y"].dtype == "float"
        with pytest.raises(RequestError, match="Servable not found for request: Latest") as caught:
            client.predict("nope", {"x": X})
        assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(ServingError, match=r"no version of 'nope' became available within 0\.2 s"):
            client.wait_until_available("nope", timeout_s=0.2)


def test_no_server_is_unavailable() -> None:
    for client in (GrpcClient(port=1, timeout_s=30), RestClient(port=1)):
        with client, pytest.raises(RequestError) as caught:
            client.status("half")
        assert caught.value.code is Code.UNAVAILABLE


# ---- versions ----


def test_hot_reload_under_load_fails_no_request(server: ServerProcess, base: Path, models_root: Path) -> None:
    stop, answers, failures = threading.Event(), set(), []

    def ask() -> None:
        with GrpcClient(port=server.grpc_port) as client:
            while not stop.is_set():
                try:
                    answers.add(tuple(client.predict("half", {"x": X})["y"].tolist()))
                except RequestError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with RestClient(port=server.rest_port) as client:
        push(models_root / "half_plus_n" / "2", base, "2")
        wait_for(client, [(2, "AVAILABLE"), (1, "END")])
        push(models_root / "half_plus_n" / "3", base, "00000003")
        wait_for(client, [(3, "AVAILABLE"), (2, "END"), (1, "END")])
        shutil.rmtree(base / "00000003")
        wait_for(client, [(3, "END"), (2, "AVAILABLE"), (1, "END")])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answers == {(1.5, 2.0), (2.5, 3.0), (3.5, 4.0)}


def test_incomplete_and_foreign_folders_are_ignored(server: ServerProcess, base: Path) -> None:
    for name in ("9", "latest", "-5", "1.5"):
        (base / name / "variables").mkdir(parents=True)
    (base / "77").write_text("a file")
    time.sleep(0.5)
    with RestClient(port=server.rest_port) as client:
        assert (client.status("half")[0].version, client.status("half")[0].state) == (3, "END")
        assert client.wait_until_available("half") == 2
    shutil.rmtree(base / "9")
    (base / "77").unlink()


def test_broken_version_is_reported_and_the_old_one_goes_on(server: ServerProcess, base: Path) -> None:
    (base / "20").mkdir()
    (base / "20" / "saved_model.pb").write_bytes(b"no model at all")
    with RestClient(port=server.rest_port) as client:
        wait_for(client, [(20, "END"), (3, "END"), (2, "AVAILABLE"), (1, "END")])
        (broken, *_) = client.status("half")
        # The C++ loader's own words, as TensorFlow Serving reports them.
        assert (broken.error_code, broken.error_message) == ("OUT_OF_RANGE", "Read less bytes than requested")
        assert client.predict("half", {"x": X})["y"].tolist() == [2.5, 3.0]
    shutil.rmtree(base / "20")


# ---- start ----


def test_broken_model_ends_the_start_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no model at all")
    with (
        pytest.raises(ServingError, match="stopped with exit code 1") as caught,
        ServerProcess("m", tmp_path),
    ):
        pass
    text = str(caught.value)
    assert "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: " in text
    assert "{{{name: m version: 1} due to error: OUT_OF_RANGE: Read less bytes than requested" in text


def test_no_version_in_time(tmp_path: Path) -> None:
    process = ServerProcess("m", tmp_path, start_timeout_s=12)
    with (
        pytest.raises(ServingError, match="no version of 'm' became available within 12 s") as caught,
        process,
    ):
        pass
    assert "No versions of servable m found under base path" in str(caught.value)
    assert not process.is_alive()


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_port_in_use_is_one_line(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"port": 0, "rest_api_port": 0, flag: port}
        flags = [f"--{name}={value}" for name, value in ports.items()]
        run = run_server(f"--model_base_path={tmp_path}", *flags, timeout_s=20)
    assert run.returncode == 1
    assert run.stdout == ""
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot listen on 127.0.0.1:{port} for ")
    assert f"--{flag}" in last
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "error: no model to serve: give --model_base_path (with --model_name) or --model_config_file"),
        (["--model_config_file=/nope"], "error: cannot read /nope: No such file or directory"),
        (
            ["--xla_gpu_compilation_enabled"],
            "error: --xla_gpu_compilation_enabled of tensorflow_model_server is",
        ),
        (
            ["--model_base_path=/m", "--batching_parameters_file=/nope"],
            "error: Failed to start server. Error: INVALID_ARGUMENT: server_options.batching_parameters_file is "
            "set without setting server_options.enable_batching to true.",
        ),
        (
            ["--model_base_path=/m", *(f"--tensorflow_{kind}_parallelism=1" for kind in PARALLELISM)],
            "error: Failed to start server. Error: INVALID_ARGUMENT: Either configure "
            "server_options.tensorflow_session_parallelism or (server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all.",
        ),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], text: str) -> None:
    run = run_server(*flags, "--port=0", "--rest_api_port=0", timeout_s=20)
    assert run.returncode == 1
    assert run.stderr.startswith(text)
    assert len(run.stderr.splitlines()) == 1


def test_invalid_model_config_file(tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text("model_config_list { config { nome: 'x' } }")
    run = run_server(f"--model_config_file={config}", timeout_s=20)
    assert run.returncode == 1
    parser = "Error parsing text-format tensorflow.serving.ModelServerConfig"
    assert f"error: Invalid protobuf file: '{config}': {parser}: 1:30" in run.stderr


def test_no_port_is_open_before_a_version_is_available(models_root: Path, tmp_path: Path) -> None:
    """Who waits for an open port, as many do, waits for the model."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
    flags = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--file_system_poll_wait_seconds=0.1"]
    log, base = tmp_path / "log", tmp_path / "base"
    process = ServerProcess("half", base, flags=flags, log_path=log)
    refused: list[int] = []

    def push_late() -> None:
        while not log.exists() or "Could not find base path" not in log.read_text():
            time.sleep(0.05)
        for port in ports:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                continue
            refused.append(port)
        base.mkdir()
        push(models_root / "half_plus_n" / "1", base, "1")

    pusher = threading.Thread(target=push_late, daemon=True)
    pusher.start()
    with process, GrpcClient(port=ports[0]) as client:
        assert client.predict("half", {"x": X})["y"].tolist() == [1.5, 2.0]
    assert refused == list(ports)


def test_who_is_answered_on_one_port_finds_the_other_open(models_root: Path) -> None:
    """The original's own tests wait for gRPC and then use both."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
    found: list[bytes] = []

    def find() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
            with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
                call(b"", timeout=60, wait_for_ready=True)
        with socket.create_connection(("127.0.0.1", ports[1]), timeout=30) as rest:
            rest.sendall(b"GET /v1/models/half HTTP/1.1\r\nHost: x\r\n\r\n")
            found.append(rest.recv(4096))

    finder = threading.Thread(target=find)
    finder.start()
    flags = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    with ServerProcess("half", models_root / "half_plus_n", flags=flags):
        finder.join(60)
    (answer,) = found
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_a_second_server_without_a_rest_port_of_its_own_goes_without(
    models_root: Path, tmp_path: Path
) -> None:
    """The original has no REST API unless it is asked for one: two of its command lines do not meet on 8501."""
    command = [sys.executable, "-m", "isthmus.serving", "--port=0", "--drain_seconds=1"]
    base = f"--model_base_path={models_root / 'half_plus_n'}"
    with contextlib.ExitStack() as held:
        # Whoever has it, the test or somebody else.
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", 8501)))
        log = held.enter_context((tmp_path / "log").open("w"))
        server = held.enter_context(subprocess.Popen([*command, base], stdout=subprocess.PIPE, stderr=log))
        assert server.stdout is not None
        announced = json.loads(server.stdout.readline())
        server.terminate()
        assert server.wait(60) == 0
    assert announced["rest_port"] is None
    assert announced["grpc_port"] > 0
    assert "no REST API: cannot listen on 127.0.0.1:8501 for REST: " in (tmp_path / "log").read_text()


# ---- end ----


def test_sigterm_finishes_requests_in_flight(tmp_path: Path) -> None:
    write_endless(tmp_path / "endless" / "1")
    finished: list[int] = []

    def ask() -> None:
        with GrpcClient(port=server.grpc_port) as client:
            finished.append(int(client.predict("endless", {"x": np.array([400_000])}, timeout_s=120)["y"]))

    with ServerProcess("endless", tmp_path / "endless") as server:
        with GrpcClient(port=server.grpc_port) as warm:
            warm.predict("endless", {"x": np.array([3])})
        idle_s = cpu_s(server)
        thread = threading.Thread(target=ask)
        thread.start()
        # It counts: nothing else keeps the server busy for so long.
        while cpu_s(server) < idle_s + 0.3:
            assert thread.is_alive(), f"too quick: {finished}"
            time.sleep(0.01)
        assert finished == []
        os.kill(server.pid, signal.SIGTERM)
        thread.join()
        assert finished == [400_000]


def cpu_s(server: ServerProcess) -> float:
    """Seconds of CPU that the server has used."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def test_announcement_is_one_json_line(models_root: Path) -> None:
    process = ServerProcess("half", models_root / "half_plus_n")
    with process:
        announced = json.dumps({"grpc_port": process.grpc_port, "rest_port": process.rest_port})
        assert json.loads(announced)["grpc_port"] > 0
        log = process.log_path
    assert not process.is_alive()
    assert not log.exists()


def write_endless(path: Path) -> None:
    """A model that counts, one after the other, to what it is asked for."""
    import tensorflow as tf

    def count(x: Any) -> Any:
        return {"y": tf.while_loop(lambda at: at < x[0], lambda at: [at + 1], [tf.constant(0, tf.int64)])[0]}

    spec = tf.TensorSpec([None], tf.int64, name="x")
    signature = tf.function(count).get_concrete_function(x=spec)
    tf.saved_model.save(tf.Module(), str(path), signatures=signature)


@pytest.mark.parametrize("flags", [[], ["--enable_batching"]])
def test_a_computation_ends_with_the_clients_deadline(tmp_path: Path, flags: list[str]) -> None:
    write_endless(tmp_path / "endless" / "1")
    log = tmp_path / "log"
    with ServerProcess("endless", tmp_path / "endless", log_path=log, flags=flags) as server:
        with GrpcClient(port=server.grpc_port) as client, pytest.raises(RequestError) as caught:
            client.predict("endless", {"x": np.array([2**60])}, timeout_s=1)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        server.stop()
    assert "busy" not in log.read_text()


def test_a_computation_without_end_does_not_keep_the_process(tmp_path: Path) -> None:
    write_endless(tmp_path / "endless" / "1")
    flags = ["--drain_seconds=1", "--rest_api_timeout_in_ms=0"]
    ends: list[Code] = []

    def ask(client: GrpcClient | RestClient) -> None:
        with client, pytest.raises(RequestError) as caught:
            client.predict("endless", {"x": np.array([2**60])})
        ends.append(caught.value.code)

    log = tmp_path / "log"
    with ServerProcess("endless", tmp_path / "endless", log_path=log, flags=flags) as server:
        with GrpcClient(port=server.grpc_port) as client:
            assert client.predict("endless", {"x": np.array([3])})["y"].tolist() == 3
        clients = GrpcClient(port=server.grpc_port), RestClient(port=server.rest_port)
        threads = [threading.Thread(target=ask, args=[client]) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert ends == []
        server.stop()
        assert server._process is not None
        assert server._process.returncode == 0
        for thread in threads:
            thread.join(30)
    assert ends == [Code.UNAVAILABLE] * 2
    assert re.search(r"WARNING leaving while 2 threads are busy: grpc_\d+, rest_\d+\n", log.read_text())
