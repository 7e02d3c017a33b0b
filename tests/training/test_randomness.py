"""Random numbers by position: the same place draws the same, another place something else."""

from __future__ import annotations

import random

import numpy as np
import torch

from isthmus.training.randomness import seed_for


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_a_place_draws_the_same_and_another_something_else() -> None:
    seen = []
    for purpose, batch in (("step", 3), ("fetch", 3), ("step", 4), ("step", 3)):
        seed_for(purpose, seed=0, epoch=2, batch=batch)
        seen.append(drawn())
    assert seen[0] == seen[3]
    for column in zip(*seen[:3], strict=True):
        assert len(set(column)) == 3


def test_torch_draws_as_after_its_own_seeding() -> None:
    seed_for("step", seed=0)
    after_ours = torch.rand(3)
    seed = torch.initial_seed()
    torch.manual_seed(seed)
    assert torch.equal(torch.rand(3), after_ours)


def test_nothing_is_kept_for_a_cuda_that_is_not_in_use() -> None:
    """torch.manual_seed would keep the call with its stack, in every step of a run on the CPU."""
    queued = len(torch.cuda._queued_calls)
    for batch in range(20):
        seed_for("step", seed=0, batch=batch)
    assert len(torch.cuda._queued_calls) == queued
