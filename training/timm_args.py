"""timm's own recipes, unchanged: the args.yaml that its train script writes, as sections of a recipe.

Every key is honoured, or refused with its name and the reason. What changes no weight (logging, output folders, pinned
memory) has no counterpart here and is named in `Translation.without_effect`; nothing is dropped silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from isthmus.training.errors import TrainingError
from isthmus.training.timm_keys import PLAIN, REFUSED, TIMM_DEFAULTS, WITHOUT_EFFECT

Values = dict[str, Any]


@dataclass(kw_only=True)
class Translation:
    """An args.yaml as a recipe."""

    values: Values
    """Sections of a recipe: name, data, model, train."""

    without_effect: list[str] = field(default_factory=list)
    """Keys with a value of their own that change no weight, and have no counterpart."""


def translate(file: Path, *, processes: int | None = None) -> Translation:
    """The recipe that trains what timm's train script would with this args.yaml.

    `processes` scales a learning rate that is given per batch (`lr_base`); default: torchrun's WORLD_SIZE.

    Raises TrainingError for a file that is none, and for a key that is not honoured: its name and the reason.
    """
    left = TIMM_DEFAULTS | _read(file)
    result = Translation(values={})
    for key, place in PLAIN.items():
        if key in left:
            value = left.pop(key)
            if value is not None and value != "":
                _put(result.values, place, value)
    for key, (nothing, reason) in REFUSED.items():
        if key in left:
            value = left.pop(key)
            if value not in nothing:
                raise TrainingError(f"{file}: {key}: {value!r} is not supported: {reason}")
    for rule in RULES:
        rule(left, result.values)
    _learning_rate(left, result.values, processes=processes)
    for key in sorted(set(left) & WITHOUT_EFFECT | {key for key in left if key.startswith("naflex_")}):
        if left.pop(key) not in (None, "", False, [], 0):
            result.without_effect.append(key)
    if left:
        raise TrainingError(
            f"{file}: {', '.join(sorted(left))}: unknown to timm's train script of this version; remove what your "
            f"fork added, or say it in a recipe (docs/training.md)"
        )
    result.values.setdefault("data", {})
    result.values.setdefault("name", str(result.values["model"]["name"]).replace(".", "_"))
    return result


def _read(file: Path) -> Values:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise TrainingError(f"cannot read {file}: {problem.strerror}") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise TrainingError(f"{file} is no YAML: {str(problem).splitlines()[0]}") from problem
    if not isinstance(content, dict) or "model" not in content:
        raise TrainingError(
            f"{file} is no args.yaml of timm's train script: a mapping with the key model is wanted"
        )
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _put(values: Values, place: str, value: Any) -> None:
    *sections, last = place.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def _data(left: Values, values: Values) -> None:
    """Where the images are: timm's folder, or the name of one of its readers."""
    root = left.pop("data_dir", None) or left.pop("data", None)
    left.pop("data", None)
    if root:
        _put(values, "data.root", root)
    kind = left.pop("dataset", "") or ""
    if "/" in kind:
        _put(values, "data.source", "timm")
        _put(values, "data.reader", kind)
    elif kind not in ("", "image_folder", "imagefolder", "folder", "image_tar"):
        raise TrainingError(
            f"dataset: {kind!r} is not supported: a folder, or a reader (torch/, hfds/, tfds/, wds/)"
        )
    for key, place in (
        ("train_split", "data.train_split"),
        ("val_split", "data.val_split"),
        ("class_map", "data.class_map"),
        ("dataset_download", "data.download"),
        ("input_key", "data.input_key"),
        ("target_key", "data.target_key"),
    ):
        value = left.pop(key, None)
        if value:
            _put(values, place, value)


def _model(left: Values, values: Values) -> None:
    """Sizes, weights and arguments of timm.create_model."""
    if size := left.pop("img_size", None):
        values["model"].setdefault("input_size", [3, size, size])
    paths = [left.pop(key, None) for key in ("initial_checkpoint", "pretrained_path")]
    if path := next((path for path in paths if path), None):
        _put(values, "model.weights", path)
        values["model"]["pretrained"] = False
    if rate := left.pop("drop", None):
        _put(values, "model.args.drop_rate", rate)
    for key, value in (left.pop("model_kwargs", None) or {}).items():
        _put(values, f"model.args.{key}", value)
    for key, value in (left.pop("opt_kwargs", None) or left.pop("opt_args", None) or {}).items():
        _put(values, f"train.optimizer_args.{key}", value)
    left.pop("opt_args", None)


def _precision(left: Values, values: Values) -> None:
    """amp and amp_dtype; native_amp of older versions."""
    amp = bool(left.pop("amp", False)) | bool(left.pop("native_amp", False))
    kind = left.pop("amp_dtype", None) or "float16"
    known = {"float16": "fp16", "bfloat16": "bf16"}
    if amp and kind not in known:
        raise TrainingError(f"amp_dtype: {kind!r} is not supported: float16 and bfloat16 are")
    device = left.pop("device", None)
    if device and device != "cuda":
        _put(values, "train.device", device)
    if amp:
        _put(values, "train.precision", known[kind])


def _loss(left: Values, values: Values) -> None:
    """Loss, moving average and BatchNorm statistics."""
    kind = left.pop("loss_type", None) or left.pop("loss", None)
    left.pop("loss", None)
    if left.pop("jsd_loss", False):
        kind = "jsd"
    if left.pop("bce_loss", False):
        kind = "bce"
    if kind:
        _put(values, "train.loss", kind)
    for key, place in (
        ("bce_sum", "bce_sum"),
        ("bce_target_thresh", "bce_target_thresh"),
        ("bce_pos_weight", "pos_weight"),
    ):
        value = left.pop(key, None)
        if value not in (None, False) and kind == "bce":
            _put(values, f"train.loss_args.{place}", value)
    decay, warmup = left.pop("model_ema_decay", None), left.pop("model_ema_warmup", False)
    if left.pop("model_ema", False):
        _put(values, "train.ema_decay", decay or 0.9998)
        _put(values, "train.ema_warmup", bool(warmup))
    if "dist_bn" in left:
        _put(values, "train.dist_bn", left.pop("dist_bn") or "none")


def _augment(left: Values, values: Values) -> None:
    """Switches of the augmentation, and how often validation and its batches are."""
    if left.pop("no_aug", False):
        _put(values, "train.augment.enabled", False)
    repeats = left.pop("aug_repeats", 0)
    if repeats:
        _put(values, "train.augment.repeats", int(repeats))
    size = left.pop("validation_batch_size", None) or values["train"]["batch_size"]
    _put(values, "train.eval_batch_size", size)
    _put(values, "train.step_on_epochs", not left.pop("sched_on_updates", False))
    if experiment := left.pop("experiment", None):
        values["name"] = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in experiment)
    if values["train"].get("scheduler_args", {}).get("noise") is not None:
        _put(values, "train.scheduler_args.noise_seed", values["train"]["seed"])


def _teacher(left: Values, values: Values) -> None:
    """timm's knowledge distillation."""
    names = {
        "kd_teacher_path": "weights",
        "kd_distill_type": "kind",
        "distill_loss_weight": "teacher_weight",
        "task_loss_weight": "task_weight",
        "kd_temperature": "temperature",
        "kd_token_distill_type": "token_target",
    }
    taken = {place: left.pop(key, None) for key, place in names.items()}
    if teacher := left.pop("kd_model_name", None):
        _put(values, "train.distill.teacher", teacher)
        for place, value in taken.items():
            if value not in (None, ""):
                _put(values, f"train.distill.{place}", value)


def _learning_rate(left: Values, values: Values, *, processes: int | None) -> None:
    """`lr` as it is, or `lr_base` scaled to the global batch as timm's script does."""
    lr, base, size = left.pop("lr", None), left.pop("lr_base", None), left.pop("lr_base_size", None)
    rule = left.pop("lr_base_scale", None)
    if lr is not None:
        _put(values, "train.lr", lr)
        return
    number = processes if processes is not None else int(os.environ.get("WORLD_SIZE", "1"))
    train = values["train"]
    ratio = train["batch_size"] * number * train.get("accumulate", 1) / size
    optimizer = str(train["optimizer"]).lower()
    if not rule:
        rule = "sqrt" if any(each in optimizer for each in ("ada", "lamb")) else "linear"
    if rule not in ("sqrt", "linear"):
        raise TrainingError(f"lr_base_scale: {rule!r} is not supported: linear and sqrt are")
    _put(values, "train.lr", base * (ratio**0.5 if rule == "sqrt" else ratio))


RULES: tuple[Callable[[Values, Values], None], ...] = (
    _data,
    _model,
    _precision,
    _loss,
    _augment,
    _teacher,
)
