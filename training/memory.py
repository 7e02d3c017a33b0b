"""Running out of memory, on the GPU or beside it, said in one line with what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch

HOST_MESSAGES = ("can't allocate memory", "not enough memory")
"""How torch's CPU allocator says it; it has no exception of its own."""


@contextmanager
def out_of_memory_is_one_line(
    *, batch_size: int, input_size: Sequence[int], device: torch.device
) -> Iterator[None]:
    """Turn torch's and Python's out-of-memory errors into a TrainingError; other errors pass."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as problem:
        host = isinstance(problem, MemoryError) or any(text in str(problem) for text in HOST_MESSAGES)
        if not host and not isinstance(problem, torch.OutOfMemoryError):
            raise
        size = "x".join(map(str, input_size))
        raise TrainingError(
            f"out of memory on {'the CPU' if host else device} with train.batch_size {batch_size} of {size}; "
            f"try train.batch_size {max(2, batch_size // 2)} (and train.lr in proportion), "
            f"a smaller model.input_size, or train.precision: bf16"
        ) from problem
