"""What a recipe may say of a sweep. Standard library only: argument parsing imports this."""

from dataclasses import dataclass
from typing import Any, Literal

from isthmus.training.config import FORBID_UNKNOWN_KEYS


@dataclass(kw_only=True)
class Parameter:
    """What a sweep may try for one key: `choices`, or a range from `low` to `high`."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    choices: tuple[Any, ...] | None = None
    """Values to choose from."""

    low: float | None = None
    """Smallest value of a range."""

    high: float | None = None
    """Largest value of a range."""

    log: bool = False
    """Draw the range's logarithm evenly, as learning rates want it."""

    integer: bool = False
    """Whole numbers only."""


@dataclass(kw_only=True)
class SweepConfig:
    """An Optuna study over keys of the recipe: isthmus train --sweep."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    parameters: dict[str, Parameter]
    """By the recipe's dotted key, below model or train: {train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}."""

    trials: int = 20
    """Trainings in all; a sweep that was interrupted goes on with those that are left."""

    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's: tree-structured Parzen estimator, or random search."""

    seed: int = 0
    """Of the sampler."""
