"""The exported SavedModel against ONNX Runtime and torch.compile: latency, Transposes, size, conversion.

python benchmarks/bridge.py [--models resnet50 …] [--rounds 7]

Each model gets random weights under which numbers mean something, crosses the bridge as a user would send it
(`isthmus export --from-timm NAME --weights FILE`), and then three processes, one a runtime, are asked in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_worker import THREADS
from measure import ROOT, Measured, run, write_section

MODELS = (
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
)
RUNTIMES = ("tensorflow", "onnxruntime", "torch")
# Calls in a row of one runtime in one round: about the same time for each batch size.
CALLS = {1: 10, 16: 2}


@dataclass(kw_only=True)
class Row:
    """What one model gave."""

    name: str
    """In timm."""
    export: Measured
    """The whole command."""
    manifest: dict[str, Any]
    """Of the bundle."""
    transposes: int
    """In the graph that TensorFlow runs after its own optimisers."""
    relative_size: float
    """Bytes of the SavedModel's graph and weights over bytes of model.onnx."""
    rounds: dict[int, dict[str, list[float]]]
    """Batch size -> runtime -> the median seconds of each round."""


class Worker:
    """A process that holds one model in one runtime."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def ask(self, **command: Any) -> Any:
        """The answer to one command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def worker(*arguments: str) -> Iterator[Worker]:
    """Stopped at the end of the block."""
    command = [sys.executable, str(ROOT / "benchmarks/bridge_worker.py"), *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.wait()


def measured(name: str, *, rounds: int, home: Path) -> Row:
    """Exports one model and times it in all runtimes."""
    print(f"{name}: weights and export", flush=True)
    weights = home / f"{name}.safetensors"
    run([sys.executable, str(ROOT / "benchmarks/random_weights.py"), name, str(weights)])
    isthmus = str(Path(sys.executable).with_name("isthmus"))
    command = [isthmus, "export", "--from-timm", name, "--weights", str(weights), "--home", str(home)]
    exported = run([*command, "--name", name])
    bundle = (home / "bundles" / name / "latest").resolve()
    arguments = {
        "tensorflow": [str(bundle / "saved_model")],
        "onnxruntime": [str(bundle / "model.onnx")],
        "torch": [name, str(weights)],
    }
    times: dict[int, dict[str, list[float]]] = {size: {runtime: [] for runtime in RUNTIMES} for size in CALLS}
    with ExitStack() as stack:
        workers = {runtime: stack.enter_context(worker(runtime, *arguments[runtime])) for runtime in RUNTIMES}
        found = workers["tensorflow"].ask(operators=True)
        # oneDNN's has a name of its own.
        transposes = found.get("Transpose", 0) + found.get("_MklTranspose", 0)
        for size, calls in CALLS.items():
            print(f"{name}: batch {size}", flush=True)
            for runtime in RUNTIMES:
                # The first calls compile, choose kernels and reorder weights.
                workers[runtime].ask(batch=size, calls=3)
            for number in range(rounds):
                # Turn and turn about, so that no runtime is always the first after a pause.
                for runtime in RUNTIMES[number % 3 :] + RUNTIMES[: number % 3]:
                    seconds = workers[runtime].ask(batch=size, calls=calls)
                    times[size][runtime].append(statistics.median(seconds))
    return Row(
        name=name,
        export=exported,
        manifest=json.loads((bundle / "manifest.json").read_text()),
        transposes=transposes,
        relative_size=graph_bytes(bundle / "saved_model") / (bundle / "model.onnx").stat().st_size,
        rounds=times,
    )


def graph_bytes(folder: Path) -> int:
    """Of a SavedModel's graph and weights; not of the photographs in its warm-up requests."""
    files = [folder / "saved_model.pb", *folder.glob("variables/*")]
    return sum(file.stat().st_size for file in files)


def ratio(times: dict[str, list[float]], runtime: str) -> str:
    """Median of the rounds' ratios, and the ratio of the best rounds."""
    ours, theirs = times["tensorflow"], times[runtime]
    of_rounds = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{of_rounds:.2f} ({min(ours) / min(theirs):.2f})"


def table(rows: Sequence[Row], rounds: int) -> str:
    """Returns the section's Markdown."""
    lines = [
        f"Latency of the fp32 SavedModel over the other runtime's, {THREADS} threads inside an operator in each; "
        f"{rounds} rounds in turns, median of the rounds' ratios and, in brackets, best round over best round. "
        "Milliseconds are the SavedModel's best round.",
        "",
        "| model | rung | ms b1 | ÷ ONNX Runtime b1 | ÷ torch.compile b1 | ms b16 | ÷ ONNX Runtime b16 "
        "| ÷ torch.compile b16 | Transposes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, row.manifest["export"]["rung"]]
        for size in CALLS:
            times = row.rounds[size]
            cells += [f"{1e3 * min(times['tensorflow']):.1f}"]
            cells += [ratio(times, "onnxruntime"), ratio(times, "torch")]
        lines.append("| " + " | ".join([*cells, str(row.transposes)]) + " |")
    lines += [
        "",
        "What conversion costs: `isthmus export --from-timm`, verification and both servers' checks included.",
        "",
        "| model | SavedModel ÷ ONNX bytes | seconds | of them lowering and verifying | weights MiB "
        "| largest process GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        tried = row.manifest["export"]["rungs_tried"]
        verified = ", ".join(f"{one['rung']} {one['seconds']:.0f}" for one in tried)
        onnx = row.manifest["files"]["model.onnx"]["bytes"] / 2**20
        lines.append(
            f"| {row.name} | {row.relative_size:.3f} | {row.export.wall_s:.0f} "
            f"| {verified} | {onnx:.0f} "
            f"| {row.export.peak_process_gib:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, rounds=arguments.rounds, home=Path(folder)))
        # What is there so far, if the rest is interrupted.
        write_section("The bridge: speed, size and conversion", table(rows, arguments.rounds))


if __name__ == "__main__":
    main()
