"""The batching parameters file: tensorflow.serving.BatchingParameters in text format, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from isthmus.serving.errors import ServingError
from isthmus.serving.model_config import read_text_proto
from isthmus.serving.private_messages import message_class

__all__ = ["PER_MODEL_FILE", "BatchingParameters", "read_parameters"]

PER_MODEL_FILE = "batching_params.pbtxt"
"""A version's own, within its folder."""


@dataclass(frozen=True, kw_only=True)
class BatchingParameters:
    """tensorflow.serving.BatchingParameters, with the original's defaults."""

    max_batch_size: int = 1000
    """Most rows that one request, and without splitting one batch, may have."""

    batch_timeout_micros: int = 0
    """How long a batch that is not full waits for more requests."""

    max_enqueued_batches: int = 10
    """Batches waiting beyond this make further requests UNAVAILABLE."""

    num_batch_threads: int = 2
    """Batches of one queue that run at the same time."""

    allowed_batch_sizes: tuple[int, ...] = ()
    """Batches are padded to the next of these sizes. Empty: never padded."""

    enable_large_batch_splitting: bool = False
    """Cut a request that exceeds max_execution_batch_size into several batches."""

    max_execution_batch_size: int = 0
    """Most rows of a computation when splitting is enabled. 0: max_batch_size."""

    pad_variable_length_inputs: bool = False
    """Pad rows of other shapes to the longest of their batch, instead of running them apart."""


def read_parameters(path: Path | None, *, num_cpus: int) -> BatchingParameters:
    """The batching parameters in a file (text format); the defaults without one.

    Raises:
        ServingError: the file is unreadable, or its sizes contradict each other.
    """
    if path is None:
        return BatchingParameters(num_batch_threads=num_cpus)
    message = read_text_proto(path, message_class("tensorflow.serving.BatchingParameters")())
    given = {
        field: getattr(message, field).value
        for field in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
            "enable_large_batch_splitting",
            "max_execution_batch_size",
        )
        if message.HasField(field)
    }
    parameters = BatchingParameters(
        **{"num_batch_threads": num_cpus, **given},
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
    )
    _check(parameters, path)
    return parameters


def _check(parameters: BatchingParameters, path: Path) -> None:
    sizes = parameters.allowed_batch_sizes
    expected = parameters.max_batch_size
    if parameters.enable_large_batch_splitting and parameters.max_execution_batch_size:
        expected = parameters.max_execution_batch_size
    if sizes and list(sizes) != sorted(set(sizes)):
        raise ServingError(f"{path}: allowed_batch_sizes must increase; got {', '.join(map(str, sizes))}")
    if sizes and sizes[-1] != expected:
        raise ServingError(
            f"{path}: Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; "
            f"expected {expected}"
        )
