"""The processes of one run: torch's own launcher (`torchrun`) starts them, its environment says who is who.

    torchrun --nproc-per-node 2 -m isthmus.cli.main train --config recipes/digits.yaml

Rank 0 prepares the data, records, saves and publishes; the others compute. Without a launcher there is one process,
and nothing here does anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from isthmus.training.errors import TrainingError

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=2)
"""The longest that ranks wait for each other: rank 0 may have a data set to prepare first."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process records, saves and publishes."""
        return self.rank == 0

    @property
    def is_many(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def share(self, value: Any) -> Any:
        """Rank 0's value (anything that pickles), on every rank."""
        if not self.is_many:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that pickles), by rank."""
        if not self.is_many:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def most(self, value: int) -> int:
        """The largest of a small number on all ranks, one collective operation."""
        if not self.is_many:
            return value
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        box = torch.tensor(value, device=device)
        torch.distributed.all_reduce(box, op=torch.distributed.ReduceOp.MAX)
        return int(box)

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if not self.is_many:
            return value
        return sum(self.gather(value)) / self.size


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the process group that torchrun's environment describes: nccl for CUDA, gloo for the CPU.

    Raises TrainingError when the environment is incomplete, or names a GPU that is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise TrainingError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start distributed training with torchrun"
        )
    import torch

    world = World(rank=int(os.environ["RANK"]), size=size, local_rank=int(os.environ["LOCAL_RANK"]))
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        if world.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"local rank {world.local_rank} has no GPU: torch sees {torch.cuda.device_count()}; start fewer "
                f"processes (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(world.local_rank)
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield world
    finally:
        torch.distributed.destroy_process_group()
