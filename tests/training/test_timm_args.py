"""timm's args.yaml: every key is honoured, or refused with its name; published recipes build what timm builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from isthmus.cli.recipe import from_values
from isthmus.training.errors import TrainingError
from isthmus.training.settings import check_settings
from isthmus.training.timm_args import Translation, translate
from isthmus.training.timm_keys import PLAIN, REFUSED

# Written anew from the hyper-parameters that their papers and timm's documentation state.
RESNET_STRIKES_BACK_A2: dict[str, Any] = {
    "model": "resnet50",
    "data_dir": "/data/imagenet",
    "experiment": "rsb-a2",
    "epochs": 300,
    "warmup_epochs": 5,
    "warmup_lr": 1.0e-4,
    "min_lr": 1.0e-6,
    "sched": "cosine",
    "cooldown_epochs": 10,
    "lr": 5.0e-3,
    "opt": "lamb",
    "weight_decay": 0.02,
    "batch_size": 512,
    "amp": True,
    "channels_last": True,
    "bce_loss": True,
    "bce_target_thresh": 0.2,
    "smoothing": 0.0,
    "aa": "rand-m7-mstd0.5-inc1",
    "aug_repeats": 3,
    "mixup": 0.1,
    "cutmix": 1.0,
    "drop_path": 0.05,
    "crop_pct": 0.95,
    "interpolation": "bicubic",
    "img_size": 224,
    "reprob": 0.0,
    "hflip": 0.5,
    "workers": 8,
    "seed": 42,
    "log_interval": 50,
    "log_wandb": True,
    "pin_mem": True,
    "sync_bn": False,
    "dist_bn": "reduce",
    "torchscript": False,
    "resume": "",
    "tta": 0,
}
DEIT_SMALL: dict[str, Any] = {
    "model": "deit_small_patch16_224",
    "epochs": 300,
    "warmup_epochs": 5,
    "warmup_lr": 1.0e-6,
    "min_lr": 1.0e-5,
    "lr_base": 5.0e-4,
    "lr_base_size": 512,
    "lr_base_scale": "linear",
    "opt": "adamw",
    "opt_eps": 1.0e-8,
    "weight_decay": 0.05,
    "batch_size": 128,
    "grad_accum_steps": 2,
    "smoothing": 0.1,
    "aa": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.3,
    "reprob": 0.25,
    "remode": "pixel",
    "recount": 1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_switch_prob": 0.5,
    "drop_path": 0.1,
    "model_ema": True,
    "model_ema_decay": 0.99996,
    "train_interpolation": "bicubic",
    "sched_on_updates": True,
}
EFFICIENTNET_LITE: dict[str, Any] = {
    "model": "efficientnet_lite0",
    "epochs": 450,
    "sched": "step",
    "decay_epochs": 2.4,
    "decay_rate": 0.97,
    "warmup_lr": 1.0e-6,
    "warmup_epochs": 3,
    "lr": 0.048,
    "opt": "rmsproptf",
    "opt_eps": 0.001,
    "momentum": 0.9,
    "weight_decay": 1.0e-5,
    "batch_size": 384,
    "drop": 0.2,
    "drop_connect": 0.2,
    "model_ema": True,
    "model_ema_decay": 0.9999,
    "aa": "rand-m9-mstd0.5",
    "lr_noise": [0.42, 0.9],
    "remode": "pixel",
    "reprob": 0.2,
    "native_amp": True,
    "bn_momentum": None,
    "lr_cycle_limit": 1,
}
CONVNEXT_FINETUNE: dict[str, Any] = {
    "model": "convnext_tiny.fb_in22k",
    "pretrained": True,
    "num_classes": 10,
    "epochs": 30,
    "lr": 5.0e-5,
    "layer_decay": 0.7,
    "opt": "adamw",
    "weight_decay": 1.0e-8,
    "head_init_scale": 0.001,
    "warmup_epochs": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.1,
    "clip_grad": 1.0,
    "clip_mode": "norm",
    "amp": True,
    "amp_dtype": "bfloat16",
    "grad_checkpointing": True,
    "model_kwargs": {"ls_init_value": 1.0e-6},
}
AUGMIX: dict[str, Any] = {
    "model": "resnet50",
    "aug_splits": 3,
    "jsd_loss": True,
    "aa": "rand-m9-mstd0.5-inc1",
    "resplit": True,
    "reprob": 0.6,
    "epochs": 200,
    "lr": 0.05,
    "batch_size": 64,
}
PUBLISHED = {
    "resnet-strikes-back-a2": RESNET_STRIKES_BACK_A2,
    "deit-small": DEIT_SMALL,
    "efficientnet-lite": EFFICIENTNET_LITE,
    "convnext-finetune": CONVNEXT_FINETUNE,
    "augmix": AUGMIX,
}


def translated(tmp_path: Path, args: dict[str, Any], **more: Any) -> Translation:
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump(args))
    return translate(path, **more)


@pytest.mark.parametrize("args", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_published_recipe_is_one_of_ours(args: dict[str, Any], tmp_path: Path) -> None:
    recipe = from_values(translated(tmp_path, args).values, where="args.yaml")
    check_settings(recipe.model, recipe.train)
    assert recipe.model.name == args["model"]
    assert recipe.train.epochs == args["epochs"]


def test_resnet_strikes_back(tmp_path: Path) -> None:
    translation = translated(tmp_path, RESNET_STRIKES_BACK_A2)
    recipe = from_values(translation.values, where="args.yaml")
    assert recipe.name == "rsb-a2"
    assert recipe.data.root == Path("/data/imagenet")
    assert recipe.model.input_size == (3, 224, 224)
    assert recipe.model.args == {"drop_path_rate": 0.05}
    train = recipe.train
    assert (train.optimizer, train.lr, train.precision) == ("lamb", 5e-3, "fp16")
    assert train.optimizer_args == {"momentum": 0.9}
    assert (train.loss, train.loss_args) == ("bce", {"bce_target_thresh": 0.2})
    assert train.scheduler_args == {"cooldown_epochs": 10, "decay_epochs": 90}
    assert train.step_on_epochs
    assert (train.augment.repeats, train.augment.mixup, train.augment.cutmix) == (3, 0.1, 1.0)
    # timm's own defaults, where a recipe has others.
    assert (train.augment.color_jitter, train.augment.scale) == (0.4, (0.08, 1.0))
    assert translation.without_effect == ["log_interval", "log_wandb", "pin_mem"]


def test_a_base_learning_rate_is_scaled_to_the_global_batch(tmp_path: Path) -> None:
    for processes, lr in ((1, 2.5e-4), (4, 1e-3)):
        values = translated(tmp_path, DEIT_SMALL, processes=processes).values
        assert values["train"]["lr"] == pytest.approx(lr)
    # Adaptive optimizers scale by the root, unless told otherwise.
    values = translated(tmp_path, DEIT_SMALL | {"lr_base_scale": "", "lr_base_size": 64}, processes=1).values
    assert values["train"]["lr"] == pytest.approx(5e-4 * 4**0.5)
    values = translated(tmp_path, {"model": "resnet18"}, processes=1).values
    assert values["train"]["lr"] == pytest.approx(0.1 * 128 / 256)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_is_not_supported_is_refused_with_its_name_and_the_reason(key: str, tmp_path: Path) -> None:
    nothing, reason = REFUSED[key]
    translated(tmp_path, {"model": "resnet18", key: nothing[0]})
    with pytest.raises(TrainingError) as caught:
        translated(tmp_path, {"model": "resnet18", key: "something"})
    assert f"{key}: 'something' is not supported: {reason}" in str(caught.value)


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_a_plain_key_reaches_its_place(key: str, tmp_path: Path) -> None:
    marker = 0.123 if key != "model" else "resnet18"
    values: Any = translated(
        tmp_path, {"model": "resnet18", key: marker, "lr": 1.0, "opt": "sgd"} | {key: marker}
    ).values
    for section in PLAIN[key].split("."):
        values = values[section]
    assert values == marker


def test_unknown_keys_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"labelmix, magic: unknown to timm's train script"):
        translated(tmp_path, {"model": "resnet18", "magic": 1, "labelmix": True})
    with pytest.raises(TrainingError, match=r"no args.yaml of timm's train script"):
        translated(tmp_path, {"lr": 1})
    with pytest.raises(TrainingError, match="cannot read"):
        translate(tmp_path / "missing.yaml")


def test_distillation_and_readers(tmp_path: Path) -> None:
    values = translated(
        tmp_path,
        {
            "model": "resnet18",
            "dataset": "hfds/uoft-cs/cifar10",
            "train_split": "train",
            "val_split": "test",
            "kd_model_name": "resnet50",
            "kd_distill_type": "feature",
            "task_loss_weight": 0.3,
            "kd_temperature": 2.0,
        },
    ).values
    assert values["train"]["distill"] == {
        "teacher": "resnet50",
        "kind": "feature",
        "task_weight": 0.3,
        "temperature": 2.0,
    }
    assert values["data"]["reader"] == "hfds/uoft-cs/cifar10"
    with pytest.raises(TrainingError, match="dataset: 'imagenet22k' is not supported"):
        translated(tmp_path, {"model": "resnet18", "dataset": "imagenet22k"})
