"""The embedded server against the bare model call and against other servers, in one run.

python benchmarks/serving.py [--home FOLDER] [--rounds 5]

Exports mobilenetv3_large_100 and a tiny CNN with drawn weights into FOLDER (kept and reused; a temporary one by
default), asks all of them for the same photograph over loopback, and writes a section of docs/benchmarks.md.
CPU time is the server process' own; rounds alternate between what is compared, and medians are taken.
"""

from __future__ import annotations

import argparse
import functools
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import psutil
from measure import ROOT, write_section
from PIL import Image
from serving_load import (
    MODEL,
    GrpcSender,
    Sender,
    cpu_per_request,
    paced_latencies,
    requests_per_second,
    rest_sender,
)
from serving_servers import BareCall, bentoml_serve, mlflow_serve, plain_fastapi
from sklearn.datasets import load_sample_images

from isthmus.serving.process import ServerProcess

LARGE, TINY = "mobilenetv3_large_100", "test_resnet"
BATCHES = (1, 2, 4, 8, 16, 32)
CLIENTS = 32
Row = tuple[str, str, str, str]


class Rows(list[Row]):
    """The table so far; what is added is printed at once."""

    def __iadd__(self, rows: Iterable[Row]) -> Self:
        for row in rows:
            print(" | ".join(row), flush=True)
            self.append(row)
        return self


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home = arguments.home or folder / "home"
        models = {name: exported(name, home) for name in (LARGE, TINY)}
        image = folder / "photograph.jpg"
        image.write_bytes(photograph())
        rows = Rows()
        for name, limit in ((LARGE, 1.15), (TINY, 2.0)):
            rows += cpu_rows(name, models[name], image, folder / "cpu", arguments.rounds, limit)
        rows += batching_rows(models[LARGE], image, folder / "batching", arguments.rounds)
        rows += latency_rows(models[LARGE], image, folder / "latency", folder / "more")
        rows += start_rows(models[TINY], image, folder / "start", arguments.rounds)
        others = comparison(models, image, folder, arguments.rounds)
    write_section("Serving", page(rows, others, image_bytes=len(photograph())))


def exported(name: str, home: Path) -> Path:
    """Returns the SavedModel of a timm model with drawn weights; exports it unless it is in home already."""
    bundle = home / "bundles" / f"bench-{name}" / "latest"
    if not bundle.exists():
        home.mkdir(parents=True, exist_ok=True)
        weights = home / f"{name}.safetensors"
        subprocess.run(
            [sys.executable, ROOT / "benchmarks/random_weights.py", name, weights], check=True, cwd=ROOT
        )
        isthmus = Path(sys.executable).with_name("isthmus")
        names = ["--from-timm", name, "--name", f"bench-{name}", "--weights", str(weights)]
        subprocess.run([isthmus, "export", *names, "--home", home], check=True, cwd=ROOT)
    return (bundle / "saved_model").resolve()


def photograph() -> bytes:
    """A JPEG of 320 × 240 pixels from one of scikit-learn's two photographs."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((320, 240)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def served(model: Path, base: Path, *flags: str) -> ServerProcess:
    """Returns a server of one version of the model, not started."""
    if not (base / "1").exists():
        base.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model, base / "1")
    return ServerProcess(MODEL, base, flags=["--file_system_poll_wait_seconds=0.2", *flags])


def cpu_rows(name: str, model: Path, image: Path, base: Path, rounds: int, limit: float) -> list[Row]:
    """CPU time of a request over each wire, against the bare call's."""
    calls = 40 if name == LARGE else 300
    data, bare = image.read_bytes(), BareCall(model, image)
    with ExitStack() as stack:
        stack.callback(bare.close)
        server = stack.enter_context(served(model, base / name))
        process = psutil.Process(server.pid)
        over_grpc, over_rest = GrpcSender(server.grpc_port, data), rest_sender(server.rest_port, data)
        measured = alternate(
            rounds,
            lambda: bare.cpu_seconds(calls),
            lambda: cpu_per_request(process, over_grpc, calls),
            lambda: cpu_per_request(process, over_rest, calls),
        )
    bare_s, grpc_s, rest_s = (statistics.median(column) for column in measured)
    return [
        (
            f"{name}: CPU of a gRPC request ÷ bare call",
            f"{ratio(measured[1], measured[0]):.2f}",
            f"≤ {limit:g}",
            f"{grpc_s * 1e3:.2f} ÷ {bare_s * 1e3:.2f} ms",
        ),
        (
            f"{name}: CPU of a REST request (base64 JPEG) ÷ gRPC",
            f"{ratio(measured[2], measured[1]):.2f}",
            "≤ 1.2",
            f"{rest_s * 1e3:.2f} ÷ {grpc_s * 1e3:.2f} ms",
        ),
    ]


def alternate(rounds: int, *measure: Callable[[], float]) -> list[list[float]]:
    """Returns each function's values; they take turns, so that a busy minute hits all of them. One more round
    comes first and is thrown away."""
    columns: list[list[float]] = [[] for _ in measure]
    for number in range(rounds + 1):
        for column, function in zip(columns, measure, strict=True):
            value = function()
            if number:
                column.append(value)
    return columns


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Returns the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def batching_rows(model: Path, image: Path, base: Path, rounds: int) -> list[Row]:
    """Images a second with 32 clients in batches, against the bare call at its best batch size."""
    data, bare = image.read_bytes(), BareCall(model, image)
    with ExitStack() as stack:
        stack.callback(bare.close)
        speeds = {size: bare.images_per_second(size, 1.5) for size in BATCHES}
        best = max(speeds, key=lambda size: speeds[size])
        # Of the clients a quarter each: two batches are computed while two fill. A larger one would be padded.
        size = max((size for size in BATCHES if size <= CLIENTS // 4), key=lambda size: speeds[size])
        base.mkdir()
        parameters = base / "batching.config"
        parameters.write_text(batching_file(size))
        flags = ("--enable_batching", f"--batching_parameters_file={parameters}")
        server = stack.enter_context(served(model, base / "model", *flags))
        measured = alternate(
            rounds,
            lambda: bare.images_per_second(best, 3),
            lambda: requests_per_second(
                lambda: GrpcSender(server.grpc_port, data), clients=CLIENTS, seconds=3
            ),
        )
    bare_rate, rate = (statistics.median(column) for column in measured)
    return [
        (
            f"{LARGE}: throughput in batches of {size}, {CLIENTS} clients ÷ bare call at its best batch ({best})",
            f"{ratio(measured[1], measured[0]):.2f}",
            "≥ 0.9",
            f"{rate:.0f} ÷ {bare_rate:.0f} images a second",
        )
    ]


def batching_file(size: int) -> str:
    """Returns the batching parameters for computations of at most that size. A request may be larger (the bundles'
    warm-up has 8 rows) and is split then."""
    sizes = [allowed for allowed in BATCHES if allowed <= size]
    return (
        f"max_batch_size {{ value: {max(BATCHES)} }}\nbatch_timeout_micros {{ value: 2000 }}\n"
        f"enable_large_batch_splitting {{ value: true }}\nmax_execution_batch_size {{ value: {size} }}\n"
        "max_enqueued_batches { value: 100 }\nnum_batch_threads { value: 2 }\n"
        + "".join(f"allowed_batch_sizes: {allowed}\n" for allowed in sizes)
    )


def latency_rows(model: Path, image: Path, base: Path, more: Path) -> list[Row]:
    """Latencies at 70 % of the capacity, and while five versions are swapped in at a third of it."""
    data = image.read_bytes()
    with served(model, base) as server:

        def make() -> Sender:
            return GrpcSender(server.grpc_port, data)

        def reload() -> None:
            for version in range(2, 7):
                shutil.copytree(model, more / str(version))
                (more / str(version)).rename(base / str(version))
                time.sleep(4)

        capacity = requests_per_second(make, clients=4, seconds=4)
        loaded = paced_latencies(make, rate=0.7 * capacity, seconds=15)
        quiet = paced_latencies(make, rate=capacity / 3, seconds=15)
        more.mkdir()
        swapping = paced_latencies(make, rate=capacity / 3, seconds=5, during=reload)
    p50, p99 = np.percentile(loaded, [50, 99]) * 1e3
    quiet_p99, swap_p99 = np.percentile(quiet, 99) * 1e3, np.percentile(swapping, 99) * 1e3
    return [
        (
            f"{LARGE}: p99 ÷ p50 at 70 % load",
            f"{p99 / p50:.2f}",
            "≤ 3",
            f"{p99:.0f} ÷ {p50:.0f} ms, {len(loaded)} requests, capacity {capacity:.0f} a second",
        ),
        (
            f"{LARGE}: p99 during five reloads ÷ quiet p99, at a third of the capacity",
            f"{swap_p99 / quiet_p99:.2f}",
            "≤ 2",
            f"{swap_p99:.0f} ÷ {quiet_p99:.0f} ms, {len(swapping)} and {len(quiet)} requests",
        ),
    ]


def start_rows(model: Path, image: Path, base: Path, rounds: int) -> list[Row]:
    """Seconds from the start of the process to its first answer."""
    seconds = []
    for _ in range(min(rounds, 3)):
        started = time.perf_counter()
        with served(model, base) as server:
            GrpcSender(server.grpc_port, image.read_bytes())()
            seconds.append(time.perf_counter() - started)
    spread = ", ".join(f"{value:.1f}" for value in seconds)
    return [(f"{TINY}: start to first answer", f"{statistics.median(seconds):.1f} s", "", spread)]


def comparison(models: dict[str, Path], image: Path, folder: Path, rounds: int) -> list[str]:
    """Markdown rows: CPU of a request and requests a second of every server, for each model."""
    data, lines = image.read_bytes(), []
    for name, model in models.items():
        calls = 30 if name == LARGE else 150
        with ExitStack() as stack:
            ours = stack.enter_context(served(model, folder / "compare" / name))
            process = psutil.Process(ours.pid)
            servers: dict[str, tuple[psutil.Process, Sender]] = {
                "isthmus serve, gRPC": (process, GrpcSender(ours.grpc_port, data)),
                "isthmus serve, REST": (process, rest_sender(ours.rest_port, data)),
                "FastAPI + tf.saved_model.load": stack.enter_context(plain_fastapi(model, data)),
            }
            packed = folder / f"packed-{name}"
            packed.mkdir()
            servers["mlflow models serve"] = stack.enter_context(mlflow_serve(model, data, packed))
            servers["BentoML"] = stack.enter_context(bentoml_serve(model, data))
            measured = alternate(
                min(rounds, 3),
                *(
                    functools.partial(cpu_per_request, process, send, calls)
                    for process, send in servers.values()
                ),
            )
            latencies = {server: one_by_one(send, calls) for server, (_, send) in servers.items()}
        for server, column in zip(servers, measured, strict=True):
            lines.append(
                f"| {name} | {server} | {statistics.median(column) * 1e3:.2f} | "
                f"{ratio(column, measured[0]):.2f} | {latencies[server] * 1e3:.1f} |"
            )
    return lines


def one_by_one(send: Sender, calls: int) -> float:
    """Returns the median seconds of a request when nothing else is asked."""
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        send()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def page(rows: list[Row], others: list[str], *, image_bytes: int) -> str:
    """Returns the section's Markdown."""
    return "\n".join(
        [
            "| what | measured | wanted | of |",
            "|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"Requests carry one JPEG of {image_bytes} bytes (320 × 240); the graph decodes and resizes it. The bare "
            "call is a Session callable on the same bytes. The servers in one run, all up at the same time, one "
            "request at a time:",
            "",
            "| model | server | CPU ms a request | ÷ isthmus gRPC | median ms |",
            "|---|---|---|---|---|",
            *others,
        ]
    )


if __name__ == "__main__":
    main()
