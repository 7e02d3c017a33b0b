"""A long day of the embedded server, compressed: reloads under load, malformed messages, killed clients, full disks,
a corrupted version, a stop while it works.

python benchmarks/soak.py [--reloads 200] [--messages 10000] [--seed 0] [--batching]     (make soak)

Prints one JSON object with what was counted and measured; exit code 1 when anything was not as it must be:
no failed request, no wrong answer, no crash, no HTTP 500, memory at most 5 % above what it was after ten reloads.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import psutil
from malformed import RestMessage, grpc_messages, rest_messages

from isthmus.serving.client import GrpcClient, RestClient
from isthmus.serving.errors import RequestError
from isthmus.serving.process import ServerProcess

MODEL = "soak"
X = [1.0, 4.0]
KNOWN_AT = 10
ALLOWED_GROWTH = 1.05
# 500 is the server's own fault; the others say what the original says with them.
REST_5XX = {501, 503, 504}
GRPC_FAULTS = {"UNKNOWN", "DATA_LOSS"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batching", action="store_true", help="with --enable_batching")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "source"
        subprocess.run(
            [sys.executable, Path(__file__).with_name("soak_model.py"), source],
            check=True,
            capture_output=True,
        )
        flags = batching_flags(folder / "batching.config") if arguments.batching else []
        report = soak(source, folder, arguments.reloads, arguments.messages, arguments.seed, flags)
    print(json.dumps(report, indent=2))
    return 1 if report["problems"] else 0


def batching_flags(file: Path) -> list[str]:
    """Batches that have room for the largest requests here: a number is a row of this model."""
    file.write_text(
        "max_batch_size { value: 4000000 } batch_timeout_micros { value: 500 } max_enqueued_batches { value: 1000 }"
    )
    return ["--enable_batching", f"--batching_parameters_file={file}"]


def soak(
    source: Path, folder: Path, reloads: int, messages: int, seed: int, flags: list[str]
) -> dict[str, Any]:
    """Everything, one after the other, on one server; then its stop."""
    base, predictions = folder / "base", folder / "predictions"
    push(source / "1", base, 1)
    flags = [
        *flags,
        "--file_system_poll_wait_seconds=0.05",
        "--access_log_file=/dev/full",
        f"--prediction_log_folder={predictions}",
        "--prediction_log_sampling_rate=0.5",
        "--http_head_timeout_seconds=2",
    ]
    with ServerProcess(MODEL, base, flags=flags, log_path=folder / "log") as server:
        load = Load(server)
        report: dict[str, Any] = {"reloads": reload_often(server, source, base, reloads)}
        report["corrupted version"] = corrupt(server, source, base, reloads + 2)
        report["malformed"] = send_malformed(server, messages, seed)
        report["killed clients"] = kill_clients(server)
        report["full disk"] = fill_disk(server, folder)
        report["stop"] = stop_under_load(server, load)
        report["load"] = load.report()
        problems = [f"{name}: {one}" for name, part in report.items() for one in part.pop("problems")]
    tracebacks = (folder / "log").read_text(errors="replace").count("in a way that no request should")
    if tracebacks:
        problems.append(f"{tracebacks} requests failed in a way that no request should")
    return {**report, "problems": problems}


class Load:
    """Two gRPC clients and one REST client that never stop asking, and know the right answers."""

    def __init__(self, server: ServerProcess) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        clients = [GrpcClient(port=server.grpc_port) for _ in range(2)] + [RestClient(port=server.rest_port)]
        self._threads = [
            threading.Thread(target=self._ask, args=(client,), daemon=True) for client in clients
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, client: Any) -> None:
        kind = type(client).__name__
        right = [[0.5 * x + addend for x in X] for addend in (1.0, 2.0, 3.0)]
        while not self._stop.is_set():
            try:
                answer = client.predict(MODEL, {"x": X})["y"].tolist()
            except RequestError as error:
                if not self._stop.is_set():
                    self.failures.append(f"{kind}: {error}"[:300])
            else:
                self.counts[kind if answer in right else f"{kind} wrong"] += 1
            time.sleep(0.005)

    def ending(self) -> None:
        """From now on an answer may be missing."""
        self._stop.set()

    def report(self) -> dict[str, Any]:
        """What was answered."""
        for thread in self._threads:
            thread.join()
        wrong = [name for name in self.counts if name.endswith("wrong")]
        return {"answers": dict(self.counts), "problems": [*self.failures[:5], *wrong]}


def push(source: Path, base: Path, version: int) -> None:
    """Publish a version as an exporter does: copied beside, then renamed."""
    base.mkdir(exist_ok=True)
    shutil.copytree(source, base.parent / f"new-{version}")
    (base.parent / f"new-{version}").rename(base / str(version))


def wait_for(server: ServerProcess, wanted: dict[int, str], timeout_s: float = 60) -> None:
    """Until those versions are in those states."""
    deadline = time.monotonic() + timeout_s
    with RestClient(port=server.rest_port) as client:
        while True:
            states = {status.version: status.state for status in client.status(MODEL)}
            if all(states.get(version) == state for version, state in wanted.items()):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited for {wanted}, saw {states}")
            time.sleep(0.02)


def reload_often(server: ServerProcess, source: Path, base: Path, reloads: int) -> dict[str, Any]:
    """Version after version; the process' memory after each."""
    process, resident, started = psutil.Process(server.pid), [], time.monotonic()
    for version in range(2, reloads + 2):
        push(source / str(version % 3 + 1), base, version)
        wait_for(server, {version: "AVAILABLE", version - 1: "END"})
        shutil.rmtree(base / str(version - 1))
        resident.append(process.memory_info().rss / 2**20)
    early = statistics.median(resident[KNOWN_AT - 5 : KNOWN_AT + 5])
    late = statistics.median(resident[-10:])
    growth = late / early
    grew = [f"memory grew by {growth - 1:.1%}"] if growth > ALLOWED_GROWTH else []
    return {
        "reloads": reloads,
        "seconds": round(time.monotonic() - started, 1),
        "MiB after ten": round(early, 1),
        "MiB at the end": round(late, 1),
        "growth": round(growth - 1, 4),
        "problems": grew,
    }


def corrupt(server: ServerProcess, source: Path, base: Path, version: int) -> dict[str, Any]:
    """A version whose variables are cut in half is reported, and the one before goes on."""
    broken = base.parent / "broken"
    shutil.copytree(source / "2", broken)
    (data,) = (broken / "variables").glob("*.data-*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    broken.rename(base / str(version))
    wait_for(server, {version: "END", version - 1: "AVAILABLE"})
    with RestClient(port=server.rest_port) as client:
        newest = client.status(MODEL)[0]
    shutil.rmtree(base / str(version))
    said = newest.error_code != "OK" and bool(newest.error_message)
    return {
        "reported as": newest.error_code,
        "problems": [] if said else ["no error for a corrupted version"],
    }


def send_malformed(server: ServerProcess, messages: int, seed: int) -> dict[str, Any]:
    """Half of them over each wire."""
    draw = random.Random(seed)
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    for _, message in zip(range(messages // 2), rest_messages(draw), strict=False):
        status = send_rest(server, message)
        statuses[f"HTTP {status}"] += 1
        if status is not None and status >= 500 and status not in REST_5XX:
            problems.append(f"HTTP {status}: {message.method} {message.path} {message.body[:200]!r}")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for _, sent in zip(range(messages // 2), grpc_messages(draw), strict=False):
            try:
                channel.unary_unary(sent.method)(sent.body, timeout=20)
                statuses["gRPC OK"] += 1
            except grpc.RpcError as error:
                statuses[f"gRPC {error.code().name}"] += 1
                if is_fault(error):
                    problems.append(
                        f"{error.code().name} {error.details()}: {sent.method} {sent.body[:200]!r}"
                    )
    if not server.is_alive():
        problems.append("the server is dead")
    return {"seed": seed, "answers": dict(sorted(statuses.items())), "problems": problems[:10]}


def is_fault(error: grpc.RpcError) -> bool:
    """Whether an error is the server's own. A message that is none is INTERNAL with gRPC itself."""
    if error.code().name == "INTERNAL":
        return "deserializing" not in error.details()
    return error.code().name in GRPC_FAULTS or error.code() is grpc.StatusCode.UNAVAILABLE


def send_rest(server: ServerProcess, message: RestMessage) -> int | None:
    """The answer's status; None when the connection was closed without one, which only a broken HTTP message may
    cause."""
    if message.raw:
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as raw:
            raw.sendall(message.raw)
            raw.shutdown(socket.SHUT_WR)
            try:
                first = raw.recv(65536).split(b" ", 2)
            except ConnectionResetError:
                return None
        return int(first[1]) if len(first) > 2 else None
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        path = message.path.encode("latin-1", "replace").decode("latin-1")
        connection.request(message.method, path, message.body, message.headers)
        return connection.getresponse().status
    finally:
        connection.close()


def kill_clients(server: ServerProcess, clients: int = 5) -> dict[str, Any]:
    """Clients that are killed while they send or wait."""
    program = (
        "import sys, numpy as np; from isthmus.serving.client import GrpcClient, RestClient; "
        "client = GrpcClient(port=int(sys.argv[1])) if sys.argv[3] == 'grpc' else RestClient(port=int(sys.argv[2]));"
        "x = np.zeros(2_000_000, np.float32); print('ready', flush=True)\n"
        "while True: client.predict('soak', {'x': x})"
    )
    for number in range(clients):
        ports = [str(server.grpc_port), str(server.rest_port), ("grpc", "rest")[number % 2]]
        client = subprocess.Popen([sys.executable, "-c", program, *ports], stdout=subprocess.PIPE)
        assert client.stdout is not None
        client.stdout.readline()
        time.sleep(0.1 + 0.1 * number)
        client.send_signal(signal.SIGKILL)
        client.wait()
        client.stdout.close()
    return {"clients": clients, "problems": [] if server.is_alive() else ["the server is dead"]}


def fill_disk(server: ServerProcess, folder: Path) -> dict[str, Any]:
    """No file may grow any more (RLIMIT_FSIZE): the prediction log fails, as the access log on /dev/full has all
    along; the requests of the load do not. Then the limit is lifted and the log goes on."""
    predictions = folder / "predictions"
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    with GrpcClient(port=server.grpc_port) as client:
        for _ in range(200):
            client.predict(MODEL, {"x": [0.0] * 20_000})
    # The log is written behind the requests' back; it may be late on a busy machine.
    time.sleep(2)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)
    # The server's own log could not grow either: it says afterwards what was lost.
    told, deadline = (
        re.compile(r"prediction log: written again; (\d+) entries were lost"),
        time.monotonic() + 20,
    )
    while not (found := told.search((folder / "log").read_text(errors="replace"))):
        if time.monotonic() > deadline:
            return {"problems": ["nobody was told that log entries were lost"]}
        time.sleep(0.1)
    left = [file.name for file in predictions.iterdir()]
    problems = [f"{len(left)} files are left of the prediction log"] if len(left) > 2 else []
    return {"lost entries": int(found[1]), "prediction logs": len(left), "problems": problems}


def stop_under_load(server: ServerProcess, load: Load) -> dict[str, Any]:
    """SIGTERM while requests of three million numbers are computed: they are answered."""
    finished: list[int] = []
    started = threading.Barrier(4)

    def ask() -> None:
        with GrpcClient(port=server.grpc_port) as client:
            client.predict(MODEL, {"x": X})
            started.wait()
            finished.append(len(client.predict(MODEL, {"x": [0.0] * 1_000_000})["y"]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.5)
    load.ending()
    os.kill(server.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    short = [f"{3 - len(finished)} requests in flight were lost"] if len(finished) < 3 else []
    return {"answered while stopping": len(finished), "problems": short}


if __name__ == "__main__":
    sys.exit(main())
