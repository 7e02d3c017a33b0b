"""A recipe's `train` section as timm's optimizer, schedule and a torch device; wrong names get the right
ones."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch

SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none")
LEAST = {"epochs": 1, "batch_size": 2, "eval_batch_size": 1, "warmup_epochs": 0, "workers": 0}


def check_settings(model: ModelConfig, train: TrainConfig) -> None:
    """What can be refused without importing torch. Raises TrainingError."""
    for name, least in LEAST.items():
        if getattr(train, name) < least:
            raise TrainingError(f"train.{name} is {getattr(train, name)}; it must be at least {least}")
    if train.lr <= 0:
        raise TrainingError(f"train.lr is {train.lr}; it must be above 0")
    if train.scheduler not in SCHEDULERS:
        raise TrainingError(
            f"train.scheduler {train.scheduler!r} is unknown; allowed: {', '.join(SCHEDULERS)}"
        )
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        raise TrainingError(f"train.ema_decay is {train.ema_decay}; it must lie between 0 and 1")
    if model.crop_pct is not None and not 0 < model.crop_pct <= 1:
        raise TrainingError(f"model.crop_pct is {model.crop_pct}; it must be above 0 and at most 1")


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises TrainingError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise TrainingError(
            f"train.device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N"
        ) from problem
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"train.device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"train.device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            f"take auto or cpu, or see isthmus doctor"
        )
    return device


def create_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's create_optimizer_v2. Raises TrainingError for an unknown name or argument."""
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if config.optimizer not in known:
        near = difflib.get_close_matches(config.optimizer, known, n=4, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else "timm.optim.list_optimizers() has them all"
        raise TrainingError(f"train.optimizer {config.optimizer!r} is unknown to timm; {hint}")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            **config.optimizer_args,
        )
    except (TypeError, ValueError, ImportError) as problem:
        raise TrainingError(
            f"timm cannot build the optimizer {config.optimizer} with train.optimizer_args "
            f"{config.optimizer_args}: {problem}"
        ) from problem
    return optimizer


def create_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, *, updates_per_epoch: int) -> Any:
    """timm's create_scheduler_v2, stepped once an update; None for `none`. Warm-up leaves at least one
    epoch."""
    from timm.scheduler import create_scheduler_v2

    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.scheduler,
            num_epochs=config.epochs,
            warmup_epochs=min(config.warmup_epochs, config.epochs - 1),
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
            **config.scheduler_args,
        )
    except (TypeError, ValueError, AssertionError) as problem:
        raise TrainingError(
            f"timm cannot build the schedule {config.scheduler} with train.scheduler_args "
            f"{config.scheduler_args}: {problem}"
        ) from problem
    return scheduler
