"""Which split an image belongs to, from its content alone. Training and the pipeline must agree on it, or the pipeline
would evaluate a model on images that it was trained on. Standard library only."""

from __future__ import annotations

import hashlib


def split_of(sha256: str, *, seed: int, val_fraction: float, test_fraction: float) -> str:
    """Which split an image belongs to, so that it never moves when others come or go.

    Args:
        sha256: Of the file's bytes, in hex.
        seed: Another seed, another split.
        val_fraction: Share of all contents that is "val".
        test_fraction: Share that is "test"; the rest is "train".
    """
    position = position_of(sha256, seed=seed)
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def position_of(sha256: str, *, seed: int) -> float:
    """A number in [0, 1), uniform over contents and fixed for each."""
    return int(hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()[:13], 16) / 16**13
