"""What a recipe may ask of timm: each of it trains, and does what it says."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from isthmus.training.config import AugmentConfig, DataConfig, DistillConfig, ModelConfig, TrainConfig
from isthmus.training.data import PreparedData, prepare
from isthmus.training.errors import TrainingError
from isthmus.training.fit import Fit
from isthmus.training.unfinished import Progress

PLAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
    "optimizer": "sgd",
    "lr": 0.01,
    "warmup_epochs": 0,
    "augment": AugmentConfig(enabled=False),
}
# No BatchNorm: batches do not change what it computes.
VIT: dict[str, Any] = {"name": "test_vit", "input_size": (3, 32, 32), "crop_pct": 1.0}
RESNET: dict[str, Any] = {"name": "test_resnet", "input_size": (3, 32, 32), "crop_pct": 1.0}


@pytest.fixture
def data(images: Path, tmp_path: Path) -> PreparedData:
    return prepare(DataConfig(root=images), home=tmp_path / "home")


def fit(data: PreparedData, model: dict[str, Any] = VIT, **changes: Any) -> tuple[Fit, Progress]:
    """Trained as the recipe says."""
    fit = Fit(model=ModelConfig(**model), train=TrainConfig(**PLAIN | changes), data=data)
    progress = Progress()
    fit.run(progress, save=lambda _: None, report=lambda *_: None)
    return fit, progress


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    return copy.deepcopy(fit._weights().state_dict())


def test_accumulated_batches_are_one_batch(data: PreparedData) -> None:
    quarter = data.splits["train"] // 4
    whole = fit(data, batch_size=2 * quarter)[0]
    accumulated = fit(data, batch_size=quarter, accumulate=2)[0]
    assert whole.updates_per_epoch == accumulated.updates_per_epoch == 2
    found = weights(accumulated)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_frozen_modules_stay_as_they_are_statistics_included(data: PreparedData) -> None:
    before = weights(Fit(model=ModelConfig(**RESNET), train=TrainConfig(**PLAIN), data=data))
    after = weights(fit(data, RESNET, freeze=("backbone",))[0])
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    with pytest.raises(
        TrainingError, match=r"train.freeze names 'layer9', which the model has not; nearest: layer"
    ):
        fit(data, RESNET, freeze=("layer9",))


def rates(fit: Fit) -> dict[str, float]:
    """Learning rate of each parameter, by name."""
    names = {id(parameter): name for name, parameter in fit._weights().named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for group in fit.optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("scheduler", ["constant", "none"])
def test_backbone_and_head_have_learning_rates_of_their_own(scheduler: str, data: PreparedData) -> None:
    changes: dict[str, Any] = PLAIN | {"backbone_lr_scale": 0.1, "scheduler": scheduler}
    found = rates(Fit(model=ModelConfig(**VIT), train=TrainConfig(**changes), data=data))
    assert found["head.weight"] == found["head.bias"] == pytest.approx(0.01)
    others = [value for name, value in found.items() if not name.startswith("head.")]
    assert others == [pytest.approx(0.001)] * len(others)


def test_layer_decay_lowers_the_rate_from_layer_to_layer(data: PreparedData) -> None:
    changes: dict[str, Any] = PLAIN | {"layer_decay": 0.5, "scheduler": "constant"}
    found = rates(Fit(model=ModelConfig(**VIT), train=TrainConfig(**changes), data=data))
    assert found["head.weight"] == pytest.approx(0.01)
    assert (
        found["patch_embed.proj.weight"]
        < found["blocks.0.attn.qkv.weight"]
        < found["blocks.1.attn.qkv.weight"]
    )
    assert found["blocks.0.attn.qkv.weight"] == pytest.approx(found["blocks.1.attn.qkv.weight"] / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "loss": "bce",
            "loss_args": {"bce_target_thresh": 0.2},
            "augment": AugmentConfig(mixup=0.2, cutmix=1.0),
        },
        {"loss": "asl"},
        {"loss": "poly"},
        {"loss": "jsd", "augment": AugmentConfig(splits=2, auto_augment="rand-m3-n1"), "smoothing": 0.1},
        {"augment": AugmentConfig(cutmix_minmax=(0.2, 0.8), mix_mode="elem", mix_off_epoch=1), "epochs": 2},
        {
            "augment": AugmentConfig(
                grayscale_prob=0.3, gaussian_blur_prob=0.3, color_jitter=0.3, color_jitter_prob=0.5
            )
        },
        {"clip_grad": 0.01, "clip_mode": "agc"},
        {"clip_grad": 0.01, "clip_mode": "value"},
        {"step_on_epochs": True, "epochs": 2, "scheduler": "step", "scheduler_args": {"decay_epochs": 1}},
        {"scheduler_args": {"cooldown_epochs": 1}},
        {"compile": "aot_eager"},
        {"precision": "bf16", "channels_last": True},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_it_trains(changes: dict[str, Any], data: PreparedData) -> None:
    trained, progress = fit(data, **changes)
    assert progress.epochs_done == trained.epochs >= trained.config.epochs
    assert all(math.isfinite(row["train_loss"]) for row in progress.history)
    assert trained.test(progress).keys() >= {"test_top1", "val_top1", "test_loss"}
    # What torch.compile puts before the names does not leak into the kept weights.
    assert progress.best is not None
    assert set(progress.best["state_dict"]) == set(timm.create_model("test_vit", img_size=32).state_dict())


def test_the_last_epochs_rest_at_the_lowest_rate(data: PreparedData) -> None:
    trained, progress = fit(data, epochs=2, min_lr=1e-5, scheduler_args={"cooldown_epochs": 2})
    assert trained.epochs == 4
    assert [row["lr"] for row in progress.history][-2:] == [pytest.approx(1e-5)] * 2


@pytest.fixture
def teacher(data: PreparedData, tmp_path: Path) -> Path:
    model = timm.create_model("test_resnet", num_classes=len(data.classes))
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


@pytest.mark.parametrize(
    ("kind", "model"),
    [("logit", VIT), ("feature", VIT), ("token", VIT | {"name": "deit_tiny_distilled_patch16_224"})],
)
def test_a_teacher_teaches(kind: Any, model: dict[str, Any], teacher: Path, data: PreparedData) -> None:
    distill = DistillConfig(teacher="test_resnet", weights=teacher, kind=kind, task_weight=0.5)
    trained, progress = fit(data, model, distill=distill, ema_decay=0.9)
    assert math.isfinite(progress.history[0]["train_loss"])
    assert progress.best is not None
    # The student alone is kept: no teacher, no projection.
    student = timm.create_model(model["name"], img_size=32, num_classes=len(data.classes))
    assert set(progress.best["state_dict"]) == set(student.state_dict())
    assert trained.test(progress)["epochs"] == 1


def test_a_teacher_without_weights_of_these_classes_is_refused(data: PreparedData, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=len(data.classes))
    save_file(model.state_dict(), tmp_path / "wrong.safetensors")
    distill = DistillConfig(teacher="test_resnet", weights=tmp_path / "wrong.safetensors")
    with pytest.raises(
        TrainingError, match=r"does not fit the teacher test_resnet: \d+ of its \d+ tensors missing"
    ):
        fit(data, distill=distill)


def test_fine_tuning_takes_local_weights_and_a_new_head(
    data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = timm.create_model("test_resnet", num_classes=7)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "source.pth")
    config = ModelConfig(**RESNET, weights=tmp_path / "source.pth", head_init_scale=0.0, head_init_bias=-2.0)
    with caplog.at_level(logging.INFO, logger="isthmus"):
        built = Fit(model=config, train=TrainConfig(**PLAIN), data=data)
    found = weights(built)
    assert "the head is new (fc.weight, fc.bias)" in caplog.text
    assert torch.equal(found["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    assert torch.all(found["fc.weight"] == 0)
    assert torch.all(found["fc.bias"] == -2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("other", r"does not fit test_resnet: \d+ of its \d+ tensors missing .*; \d+ not the model's"),
        ("object", r"holds more than tensors|holds no weights that can be read"),
        ("garbage", r"holds no weights that can be read"),
        ("empty", r"holds no tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    content: str, text: str, data: PreparedData, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if content == "other":
        torch.save(timm.create_model("test_vit").state_dict(), path)
    elif content == "object":
        torch.save({"state_dict": {"a": pytest.approx(1)}}, path)
    elif content == "garbage":
        path.write_bytes(b"no weights")
    else:
        torch.save({"state_dict": {}}, path)
    with pytest.raises(TrainingError, match=text):
        Fit(model=ModelConfig(**RESNET, weights=path), train=TrainConfig(**PLAIN), data=data)


def test_steps_whose_loss_is_no_number_can_be_left_out(data: PreparedData) -> None:
    trained = Fit(model=ModelConfig(**VIT), train=TrainConfig(**PLAIN | {"on_nan": "skip"}), data=data)
    forward, calls = trained.task.forward, []

    def poisoned(images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(images))
        return forward(images * math.nan if len(calls) == 2 else images, targets)

    trained.task.forward = poisoned
    progress = Progress()
    trained.run(progress, save=lambda _: None, report=lambda *_: None)
    assert progress.history[0]["skipped"] == 1
    assert math.isfinite(progress.history[0]["train_loss"])
    assert all(torch.isfinite(value).all() for value in weights(trained).values())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "fp16"}, "train.precision fp16 needs CUDA, not cpu"),
        (
            {"compile": "no_such"},
            "train.compile 'no_such' is no backend of torch.compile; allowed: .*inductor",
        ),
        ({"loss": "zlpr"}, "timm cannot build the loss zlpr"),
    ],
)
def test_what_cannot_be_built_is_one_line(changes: dict[str, Any], text: str, data: PreparedData) -> None:
    with pytest.raises(TrainingError, match=text):
        fit(data, **changes)
