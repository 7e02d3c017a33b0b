"""`isthmus serve --tune`: measures a model behind TensorFlow's batch scheduler, chooses the batching parameters for a
latency target, and writes them, with warm-up requests of the sizes that will be computed.

isthmus serve --tune --model_base_path=.isthmus/serving/digits --latency_target_ms=50 --tune_output=tuned

The inputs come from the model's own warm-up file, so that they are real ones. What is measured is the batched
model in this process, as the server calls it, without the wires. Nothing of the model itself is changed: the
warm-up file is written beside the parameters, to be put into assets.extra/ of the next version.
"""

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.serving import inference, tensors, warmup
from isthmus.serving.base_paths import newest_version
from isthmus.serving.batching import BatchedModel
from isthmus.serving.batching_parameters import BatchingParameters
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import ServingError
from isthmus.serving.loading import session_options
from isthmus.serving.savedmodel import DEFAULT_SIGNATURE, LoadedModel, SavedModel

__all__ = ["Measured", "choose", "parameters_text", "tune"]

BATCHING_FILE, WARMUP_FILE = "batching.config", warmup.WARMUP_FILE.name
_SIZES = (1, 2, 4, 8, 16, 32, 64)
# A batch size is worth its latency only if it brings this much more throughput.
_WORTH = 1.03

Inputs = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting under the load of as many clients as a full pipeline of batches needs."""

    max_batch_size: int
    """Rows of a batch at most."""

    timeout_micros: int
    """How long a batch waits to fill."""

    clients: int
    """Requests of one row at the same time."""

    rows_per_second: float
    """Answered rows a second."""

    p50_ms: float
    """Median latency."""

    p99_ms: float
    """99th percentile."""


def tune(config: ServingConfig, *, say: Callable[[str], object] = print) -> BatchingParameters:
    """Measure, choose, write; what was chosen.

    Raises:
        ServingError: there is no model, no warm-up file to take inputs from, the output cannot be written, or even
            single requests miss the target.
    """
    # A decoder's warning for each image would bury the table.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if config.model_base_path is None:
        raise ServingError("--tune measures one model: give --model_base_path")
    target_ms, output = config.latency_target_ms, config.tune_output
    if target_ms <= 0 or config.tune_seconds <= 0:
        raise ServingError("--latency_target_ms and --tune_seconds must be above 0")
    path = newest_version(config.model_base_path)
    with contextlib.closing(SavedModel(path, session_options(config))) as model:
        rows = _rows(path)
        say(f"{path}: at most {target_ms:g} ms for 99 % of the requests, {config.tune_seconds:g} s a setting")
        measured = _sweep(model, rows, config, say)
        chosen = choose(measured, target_ms=target_ms)
        num_cpus = os.cpu_count() or 1
        parameters = _parameters(chosen.max_batch_size, chosen.timeout_micros, num_cpus)
        _write(output, parameters, path, rows)
    say(
        f"chosen: batches of at most {chosen.max_batch_size}, {chosen.timeout_micros} µs to fill: "
        f"{chosen.rows_per_second:.0f} rows a second, p99 {chosen.p99_ms:.1f} ms"
    )
    say(f"serve with --enable_batching --batching_parameters_file={output / BATCHING_FILE}")
    say(f"{output / WARMUP_FILE} belongs into assets.extra/ of the next version")
    return parameters


def choose(measured: Sequence[Measured], *, target_ms: float) -> Measured:
    """The highest throughput whose p99 keeps the target; a larger batch or a longer wait must be worth it.

    Raises:
        ServingError: none keeps it.
    """
    fitting = [one for one in measured if one.p99_ms <= target_ms]
    if not fitting:
        best = min(measured, key=lambda one: one.p99_ms)
        raise ServingError(
            f"no setting keeps 99 % of the requests within {target_ms:g} ms; the best is {best.p99_ms:.1f} ms with "
            f"batches of at most {best.max_batch_size}: raise --latency_target_ms, or take a smaller model"
        )
    chosen, *others = sorted(fitting, key=lambda one: (one.max_batch_size, one.timeout_micros))
    for one in others:
        if one.rows_per_second > chosen.rows_per_second * _WORTH:
            chosen = one
    return chosen


def parameters_text(parameters: BatchingParameters) -> str:
    """The batching_parameters_file."""
    lines = [
        f"{name} {{ value: {getattr(parameters, name)} }}"
        for name in ("max_batch_size", "batch_timeout_micros", "num_batch_threads", "max_enqueued_batches")
    ]
    lines += [
        "enable_large_batch_splitting { value: true }",
        f"max_execution_batch_size {{ value: {parameters.max_execution_batch_size} }}",
        *(f"allowed_batch_sizes: {size}" for size in parameters.allowed_batch_sizes),
    ]
    return "\n".join(lines) + "\n"


def _parameters(size: int, timeout_micros: int, num_cpus: int) -> BatchingParameters:
    """Requests may be larger than a computation (warm-up records are): they are split."""
    return BatchingParameters(
        max_batch_size=max(size, _SIZES[-1]),
        batch_timeout_micros=timeout_micros,
        num_batch_threads=num_cpus,
        max_enqueued_batches=100,
        allowed_batch_sizes=tuple(allowed for allowed in _SIZES if allowed <= size),
        enable_large_batch_splitting=True,
        max_execution_batch_size=size,
    )


class _Uncloseable:
    """A model that outlives the queues around it."""

    def __init__(self, model: LoadedModel) -> None:
        self.path, self.signatures, self.run, self.dtype = (
            model.path,
            model.signatures,
            model.run,
            model.dtype,
        )

    def close(self) -> None:
        """Nothing."""


def _rows(path: Path) -> list[Inputs]:
    """Every row of the warm-up record of the default signature that has most of them."""
    best: Inputs = {}
    file = path / warmup.WARMUP_FILE
    for log in warmup.records(file) if file.is_file() else ():
        request = log.predict_log.request
        if request.model_spec.signature_name in ("", DEFAULT_SIGNATURE) and request.inputs:
            arrays = {alias: tensors.array_from_proto(proto) for alias, proto in request.inputs.items()}
            if all(array.ndim for array in arrays.values()) and _num_rows(arrays) > _num_rows(best):
                best = arrays
    if not best:
        raise ServingError(
            f"{path} has no warm-up request for {DEFAULT_SIGNATURE} in {warmup.WARMUP_FILE}; --tune takes its inputs "
            "from there (every bundle of isthmus export has some)"
        )
    return [{alias: array[row : row + 1] for alias, array in best.items()} for row in range(_num_rows(best))]


def _num_rows(arrays: Inputs) -> int:
    return min((len(array) for array in arrays.values()), default=0)


def _sweep(
    model: LoadedModel, rows: Sequence[Inputs], config: ServingConfig, say: Callable[[str], object]
) -> list[Measured]:
    """Batch sizes upwards until the target is missed by far; the waiting time of half a batch's computation is
    tried beside none."""
    num_cpus = os.cpu_count() or 1
    say("max_batch_size  wait µs  clients  rows/s    p50 ms    p99 ms")
    measured: list[Measured] = []
    for size in _SIZES:
        waits = (0,) if size == 1 else (0, _wait_micros(measured[-1]))
        for wait in waits:
            parameters = _parameters(size, wait, num_cpus)
            one = _measure(BatchedModel(_Uncloseable(model), parameters), rows, config.tune_seconds)
            one = replace(one, max_batch_size=size, timeout_micros=wait)
            measured.append(one)
            say(
                f"{size:14d}  {wait:7d}  {one.clients:7d}  {one.rows_per_second:6.0f}  {one.p50_ms:8.1f}  "
                f"{one.p99_ms:8.1f}"
            )
        if min(one.p50_ms for one in measured[-len(waits) :]) > 2 * config.latency_target_ms:
            break
    return measured


def _wait_micros(before: Measured) -> int:
    return max(100, int(before.p50_ms * 5) * 100)


def _measure(model: BatchedModel, rows: Sequence[Inputs], seconds: float) -> Measured:
    """As many callers as keep every batch thread busy and another batch filling, each with one row at a time."""
    size = model.parameters.max_execution_batch_size
    clients = size * (model.parameters.num_batch_threads + 1)
    latencies: list[float] = []
    for row in rows:
        inference.predict(model, "", row)
    started = time.perf_counter()
    end = started + seconds

    def run(first: int) -> None:
        ours = itertools.islice(itertools.cycle(rows), first, None)
        while (begun := time.perf_counter()) < end:
            inference.predict(model, "", next(ours))
            latencies.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    model.close()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Measured(
        max_batch_size=size,
        timeout_micros=0,
        clients=clients,
        rows_per_second=len(latencies) / elapsed,
        p50_ms=float(p50),
        p99_ms=float(p99),
    )


def _write(folder: Path, parameters: BatchingParameters, path: Path, rows: Sequence[Inputs]) -> None:
    """Both files, each complete or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            beside = Path(temporary)
            (beside / BATCHING_FILE).write_text(parameters_text(parameters))
            warmup.write(beside / WARMUP_FILE, rows, parameters.allowed_batch_sizes, name=path.parent.name)
            for file in (BATCHING_FILE, WARMUP_FILE):
                shutil.move(beside / file, folder / file)
    except OSError as error:
        raise ServingError(f"cannot write {folder}: {error.strerror}") from error


def say_on_stdout(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
