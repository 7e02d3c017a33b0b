"""What is trained: timm's task around a model, its loss, its teacher, and what mixes the batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isthmus.training import weights
from isthmus.training.config import DistillConfig, TrainConfig
from isthmus.training.distributed import World
from isthmus.training.errors import TrainingError
from isthmus.training.model import check_name

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask


def create_task(
    model: torch.nn.Module, config: TrainConfig, *, mixed: bool, multi_label: bool, device: torch.device
) -> TrainingTask:
    """timm's task for a model that lies on `device`: loss and teacher.

    Raises TrainingError for a loss or a teacher that timm refuses.
    """
    arguments = {
        "criterion_kwargs": _loss_arguments(config, mixed=mixed),
        "device": device,
        "verbose": False,
    }
    try:
        return _build(model, config, arguments, multi_label=multi_label, device=device)
    except (TypeError, ValueError, AssertionError, NotImplementedError) as problem:
        raise TrainingError(
            f"timm cannot build the loss {config.loss or 'of the head'} with train.loss_args {config.loss_args}: "
            f"{problem}"
        ) from problem


def wrap_task(task: TrainingTask, config: TrainConfig, *, device: torch.device, world: World) -> None:
    """Moving average, compilation and DDP around a task whose optimizer is built, in timm's order.

    Raises TrainingError for a compiler that torch does not have.
    """
    if config.ema_decay is not None:
        task.setup_ema(decay=config.ema_decay, use_warmup=config.ema_warmup)
    if config.compile is not None:
        _check_backend(config.compile)
        task.compile(backend=config.compile, mode=config.compile_mode)
    if world.is_many:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)


def synchronized(
    model: torch.nn.Module, config: TrainConfig, *, device: torch.device, world: World
) -> torch.nn.Module:
    """The model with BatchNorm over all processes, where the recipe asks for it and there are several."""
    if not config.sync_bn or not world.is_many:
        return model
    if device.type != "cuda":
        raise TrainingError("train.sync_bn needs CUDA: torch has no synchronized BatchNorm on the CPU")
    from timm.layers import convert_sync_batchnorm

    converted: torch.nn.Module = convert_sync_batchnorm(model)
    return converted


def create_mixup(config: TrainConfig, *, num_classes: int, multi_label: bool = False) -> Any:
    """timm.data.Mixup over whole batches on the device, or None where the recipe mixes nothing."""
    from timm.data import Mixup

    augment = config.augment
    if not augment.enabled or not (augment.mixup or augment.cutmix or augment.cutmix_minmax):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        cutmix_minmax=augment.cutmix_minmax,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch_prob,
        mode=augment.mix_mode,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
        multi_label=multi_label,
    )


def _loss_arguments(config: TrainConfig, *, mixed: bool) -> dict[str, Any]:
    """Of timm.loss.create_classification_loss. Mixing hands out soft targets, which carry the smoothing."""
    arguments: dict[str, Any] = {"loss_type": config.loss}
    if mixed:
        arguments["soft_targets"] = True
    elif config.smoothing:
        arguments["smoothing"] = config.smoothing
    if config.loss == "jsd":
        arguments["jsd_splits"] = config.augment.splits
    return arguments | config.loss_args


def _build(
    model: torch.nn.Module,
    config: TrainConfig,
    arguments: dict[str, Any],
    *,
    multi_label: bool,
    device: torch.device,
) -> TrainingTask:
    from timm import task as tasks

    if config.distill is None:
        kind = tasks.MultiLabelClassificationTask if multi_label else tasks.ClassificationTask
        return kind(model, **arguments)
    if multi_label:
        raise TrainingError("train.distill is for single-label heads; timm has no multi-label distillation")
    distill = config.distill
    shared: dict[str, Any] = arguments | {
        "teacher_model": _teacher(distill, model, device),
        "task_loss_weight": distill.task_weight,
        "distill_loss_weight": distill.teacher_weight,
    }
    if distill.kind == "feature":
        return tasks.FeatureDistillationTask(model, **shared)
    if distill.kind == "token":
        return tasks.TokenDistillationTask(
            model, **shared, distill_type=distill.token_target, temperature=distill.temperature
        )
    return tasks.LogitDistillationTask(model, **shared, temperature=distill.temperature)


def _teacher(config: DistillConfig, student: Any, device: torch.device) -> Any:
    """timm's teacher: local weights with the classes of this data set, or timm's pretrained ones."""
    import timm
    from timm.task import DistillationTeacher

    check_name(config.teacher)
    try:
        model = timm.create_model(
            config.teacher, pretrained=config.weights is None, num_classes=student.num_classes
        )
    except (OSError, RuntimeError) as problem:
        raise TrainingError(
            f"no pretrained weights for the teacher {config.teacher}: {str(problem).splitlines()[0]}; give "
            f"train.distill.weights"
        ) from problem
    if config.weights is not None:
        weights.load(model, config.weights, called=f"the teacher {config.teacher}")
    return DistillationTeacher(model.to(device), device=device)


def _check_backend(backend: str) -> None:
    import torch

    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise TrainingError(
            f"train.compile {backend!r} is no backend of torch.compile; allowed: {', '.join(known)}"
        )
