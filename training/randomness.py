"""Random numbers by position: what a step draws depends on where it stands in the run, and on nothing before it.

A run that continues inside an epoch so draws what the uninterrupted one drew: there is no generator whose state would
have to be kept, neither here nor in the loader's worker processes, which get their seeds from this one when an epoch
begins. Fetching (decoding, augmentation, erasing) and stepping (Mixup, dropout) have streams of their own, since the
loader works ahead of the step.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal


def seed_for(
    purpose: Literal["weights", "epoch", "fetch", "step"],
    *,
    seed: int,
    epoch: int = 0,
    batch: int = 0,
    rank: int = 0,
) -> None:
    """Seed Python's, NumPy's, torch's and, once it is in use, CUDA's generators of this process from a position in
    the run."""
    import numpy as np
    import torch

    place = f"{purpose}/{seed}/{epoch}/{batch}/{rank}".encode()
    value = int.from_bytes(hashlib.blake2b(place, digest_size=4).digest(), "big")
    random.seed(value)
    np.random.seed(value)
    # Not torch.manual_seed: for a CUDA that nobody has used yet it keeps the call and its stack, 0.7 ms each time.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
