"""A recipe's `train` section as timm's optimizer, schedule and a torch device; wrong names get the right
ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError
from isthmus.training.model import is_within
from isthmus.training.weights import check_file

if TYPE_CHECKING:
    import torch

SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none")
LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "eval_batch_size": 1,
    "warmup_epochs": 0,
    "workers": 0,
    "save_every": 0,
    "keep_states": 1,
}


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
    if train.layer_decay is not None and train.backbone_lr_scale is not None:
        raise TrainingError(
            "train.layer_decay and train.backbone_lr_scale exclude each other; take one of them"
        )
    _check_augment(train)
    if model.weights is not None:
        check_file(model.weights)
    if train.distill is not None and train.distill.weights is not None:
        check_file(train.distill.weights)
    if model.crop_pct is not None and not 0 < model.crop_pct <= 1:
        raise TrainingError(f"model.crop_pct is {model.crop_pct}; it must be above 0 and at most 1")


def _check_augment(train: TrainConfig) -> None:
    augment = train.augment
    if augment.splits == 1:
        raise TrainingError("train.augment.splits is 1; it must be 0 or at least 2")
    if (train.loss == "jsd") != (augment.splits > 1):
        raise TrainingError(
            "train.loss jsd and train.augment.splits (from 2) belong together; give both or none"
        )
    if augment.mix_mode != "batch" and train.batch_size % 2:
        raise TrainingError(
            f"train.augment.mix_mode {augment.mix_mode} mixes pairs; train.batch_size {train.batch_size} must be even"
        )
    if augment.splits and (augment.mixup or augment.cutmix or augment.cutmix_minmax):
        raise TrainingError("train.augment.splits cannot be mixed: leave mixup and cutmix at 0")


def check_precision(train: TrainConfig, device: torch.device) -> None:
    """Raises TrainingError where the device has no such precision."""
    if train.precision == "fp16" and device.type != "cuda":
        raise TrainingError(f"train.precision fp16 needs CUDA, not {device.type}; take bf16 or fp32")


def use_tensor_cores(device: torch.device) -> None:
    """What timm's train script sets on CUDA: float32 products in TF32, and cuDNN's fastest kernel for each shape."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 is no TF32 inside, on CUDA either: what a checkpoint is said to reach, its export is held to."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is one, and each process of a machine its own.

    Raises TrainingError for a device that is not there.
    """
    import torch

    if name in ("auto", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        if name == "auto":
            return torch.device("cpu")
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


def create_optimizer(
    model: torch.nn.Module, config: TrainConfig, *, head: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """timm's create_optimizer_v2; `head` names the classifier's modules, for train.backbone_lr_scale.

    Raises TrainingError for an unknown name or argument.
    """
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
            **_groups(config, head),
            **config.optimizer_args,
        )
    except (TypeError, ValueError, ImportError) as problem:
        raise TrainingError(
            f"timm cannot build the optimizer {config.optimizer} with train.optimizer_args "
            f"{config.optimizer_args}: {problem}"
        ) from problem
    return optimizer


def _groups(config: TrainConfig, head: tuple[str, ...]) -> dict[str, Any]:
    """How parameters get learning rates of their own: by layer, or backbone and head."""
    if config.backbone_lr_scale is None:
        return {"layer_decay": config.layer_decay}
    scale = config.backbone_lr_scale

    def split(module: torch.nn.Module) -> list[dict[str, Any]]:
        from timm.optim import param_groups_weight_decay

        groups = param_groups_weight_decay(
            module, config.weight_decay, no_weight_decay_list=getattr(module, "no_weight_decay", tuple)()
        )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        divided: list[dict[str, Any]] = []
        for group in groups:
            for lr_scale, of_head in ((scale, False), (1.0, True)):
                params = [each for each in group["params"] if is_within(names[id(each)], head) is of_head]
                if params:
                    # timm's schedulers multiply by lr_scale; without one, the optimizer itself has to know.
                    own = {"lr": config.lr * lr_scale} if config.scheduler == "none" else {}
                    divided.append(group | {"params": params, "lr_scale": lr_scale} | own)
        return divided

    return {"param_group_fn": split}


def create_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, updates_per_epoch: int
) -> tuple[Any, int]:
    """timm's create_scheduler_v2 (None for `none`) and the epochs that it lasts, cool-down included.

    Warm-up leaves at least one epoch.
    """
    from timm.scheduler import create_scheduler_v2

    try:
        scheduler, num_epochs = create_scheduler_v2(
            optimizer,
            sched=config.scheduler,
            num_epochs=config.epochs,
            warmup_epochs=min(config.warmup_epochs, config.epochs - 1),
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=config.step_on_epochs,
            updates_per_epoch=updates_per_epoch,
            **config.scheduler_args,
        )
    except (TypeError, ValueError, AssertionError) as problem:
        raise TrainingError(
            f"timm cannot build the schedule {config.scheduler} with train.scheduler_args "
            f"{config.scheduler_args}: {problem}"
        ) from problem
    return scheduler, int(num_epochs)
