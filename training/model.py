"""A timm model for the classes at hand, and the preprocessing that belongs to it."""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING, Any

from isthmus.training import weights
from isthmus.training.config import ModelConfig
from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def create_model(config: ModelConfig, *, num_classes: int) -> torch.nn.Module:
    """timm.create_model, with every complaint of timm's in one line.

    Raises TrainingError for an unknown name (with the nearest ones), arguments that the model does not
    take, weights that do not exist or cannot be downloaded, and an input size that it cannot take.
    """
    import timm

    check_name(config.name)
    if config.num_classes not in (None, num_classes):
        raise TrainingError(
            f"model.num_classes is {config.num_classes}, but the data has {num_classes} classes"
        )
    if config.input_size is not None and config.input_size[0] != 3:
        raise TrainingError(
            f"model.input_size {list(config.input_size)}: channels are 3, images are opened as RGB"
        )
    if config.pretrained and config.weights is not None:
        raise TrainingError("model.pretrained and model.weights exclude each other; take one of them")
    try:
        model: torch.nn.Module = timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=num_classes, **model_args(config)
        )
    except (TypeError, ValueError, AssertionError) as problem:
        raise TrainingError(
            f"timm cannot build {config.name} with model.args {model_args(config)}: {_first_line(problem)}"
        ) from problem
    except (OSError, RuntimeError) as problem:
        raise TrainingError(
            f"no pretrained weights for {config.name}: {_first_line(problem)}; "
            f"set model.pretrained: false, or take a name that timm.list_pretrained() knows"
        ) from problem
    if config.weights is not None:
        weights.load(model, config.weights, called=config.name)
    _init_head(model, config)
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise TrainingError(
                f"{config.name} cannot checkpoint gradients; set model.grad_checkpointing: false"
            )
        model.set_grad_checkpointing(enable=True)
    _try_one_batch(model, config, num_classes=num_classes)
    return model


def _init_head(model: torch.nn.Module, config: ModelConfig) -> None:
    """timm's head_init_scale and head_init_bias, on every linear layer of the classifier."""
    import torch

    if config.head_init_scale is None and config.head_init_bias is None:
        return
    layers = [model.get_submodule(name) for name in head_modules(model)]
    with torch.no_grad():
        for layer in layers:
            if config.head_init_scale is not None:
                layer.weight.mul_(config.head_init_scale)
            if config.head_init_bias is not None and layer.bias is not None:
                layer.bias.fill_(config.head_init_bias)


def freeze(model: torch.nn.Module, modules: tuple[str, ...]) -> None:
    """timm.utils.freeze: these modules stay as they are, BatchNorm statistics included.

    `backbone` stands for everything but the classifier. Raises TrainingError with the nearest names for a module
    that the model does not have.
    """
    from timm.utils import freeze as freeze_modules

    if not modules:
        return
    known = [name for name, _ in model.named_modules() if name]
    head = head_modules(model)
    names: list[str] = []
    for given in modules:
        if given == "backbone":
            names += [name for name, _ in model.named_children() if not _holds(name, head)]
        elif given in known:
            names.append(given)
        else:
            near = difflib.get_close_matches(given, known, n=4, cutoff=0.4) or known[:4]
            raise TrainingError(
                f"train.freeze names {given!r}, which the model has not; nearest: {', '.join(near)}"
            )
    freeze_modules(model, names, include_bn_running_stats=True)
    if not any(each.requires_grad for each in model.parameters()):
        raise TrainingError(f"train.freeze {list(modules)} leaves nothing to train")


def is_within(parameter: str, modules: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to one of these modules; what tasks put before the names does not count."""
    name = parameter.removeprefix("student.")
    return any(name.startswith(f"{module}.") for module in modules)


def head_modules(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the classifier's modules, as timm knows them for this model."""
    names = model.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _holds(child: str, head: tuple[str, ...]) -> bool:
    return any(name == child or name.startswith(f"{child}.") for name in head)


def model_args(config: ModelConfig) -> dict[str, Any]:
    """What timm.create_model gets beside the name: model.args, and img_size where the input size is built
    in (ViT)."""
    import timm

    known = timm.models.get_pretrained_cfg(config.name, allow_unregistered=True)
    if config.input_size is None or known is None or not known.fixed_input_size:
        return dict(config.args)
    return {"img_size": list(config.input_size[1:])} | config.args


def check_name(name: str) -> None:
    """Raises TrainingError with the nearest names when timm has no such model or no such tag of it."""
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() has them all"
        raise TrainingError(f"timm {timm.__version__} has no model {base!r}; {hint}")
    tagged = timm.list_pretrained(f"{base}.*")
    if tag and name not in tagged:
        raise TrainingError(
            f"{base} has no pretrained tag {tag!r}; "
            + (f"it has {', '.join(full.partition('.')[2] for full in tagged)}" if tagged else "it has none")
        )


def data_config(model: torch.nn.Module, config: ModelConfig) -> dict[str, Any]:
    """timm's resolved evaluation preprocessing as plain JSON values.

    {"input_size": [C, H, W], "interpolation", "mean", "std", "crop_pct", "crop_mode"}; what the recipe
    gives wins over what timm knows of the model.
    """
    from timm.data import resolve_data_config

    given = {
        "input_size": config.input_size,
        "interpolation": config.interpolation,
        "mean": config.mean,
        "std": config.std,
        "crop_pct": config.crop_pct,
        "crop_mode": config.crop_mode,
    }
    resolved = resolve_data_config(given, model=model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in resolved.items()}


def _try_one_batch(model: torch.nn.Module, config: ModelConfig, *, num_classes: int) -> None:
    """Two black images through the net: an input size that it cannot take shows here, not after the
    preparation."""
    import torch

    size = data_config(model, config)["input_size"]
    model.eval()
    try:
        with torch.no_grad():
            shape = tuple(model(torch.zeros(2, *size)).shape)
    except (RuntimeError, ValueError, AssertionError) as problem:
        raise TrainingError(
            f"{config.name} cannot take images of model.input_size {size}: {_first_line(problem)}"
        ) from problem
    if shape != (2, num_classes):
        raise TrainingError(
            f"{config.name} answers shape {shape} for 2 images of {num_classes} classes; it is no classifier"
        )


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
