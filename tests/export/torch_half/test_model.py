"""Loading a checkpoint's model, and refusing what is not a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.export import checkpoint as checkpoints
from isthmus.export.errors import ExportError
from isthmus.export.torch_half.model import load_model, logits

IMAGES = np.random.default_rng(0).normal(size=(20, 32, 32, 3)).astype(np.float32)


def test_both_forms_of_the_model_give_the_same_logits(checkpoint: Path) -> None:
    from timm.layers import use_fused_attn

    record = checkpoints.read(checkpoint)
    before = use_fused_attn()
    plain = logits(load_model(record, exportable=False), IMAGES, num_classes=4)
    exportable = logits(load_model(record, exportable=True), IMAGES, num_classes=4)
    assert plain.shape == (20, 4)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(exportable, plain, atol=1e-5)
    assert use_fused_attn() == before


def test_an_unknown_model_names_the_nearest(checkpoint: Path, tmp_path: Path) -> None:
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    record["model"]["name"] = "resnet18s"
    changed = checkpoints.Checkpoint(path=tmp_path, record=record)
    with pytest.raises(ExportError, match=r"has no model 'resnet18s'; the nearest names are \['resnet18"):
        load_model(changed, exportable=False)


def test_weights_of_another_model_are_refused(checkpoint: Path) -> None:
    record = checkpoints.read(checkpoint).record
    other = checkpoints.Checkpoint(
        path=checkpoint, record={**record, "model": {**record["model"], "name": "resnet18"}}
    )
    with pytest.raises(ExportError, match=r"model\.safetensors does not fit resnet18: .*Missing key"):
        load_model(other, exportable=False)


def test_changed_weights_are_refused(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint()
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ExportError, match="changed after training; train again"):
        checkpoints.read(path).check_weights()


class Several(torch.nn.Module):
    """What a detector or `features_only=True` answers with."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


class Features(torch.nn.Module):
    """A model whose head was taken off."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_a_forward_that_gives_no_tensor_is_one_clear_line() -> None:
    with pytest.raises(ExportError, match="the model's forward gives a tuple, not a tensor of logits"):
        logits(Several(), IMAGES, num_classes=4)


def test_a_forward_that_gives_no_logits_is_one_clear_line() -> None:
    text = r"gives shape \(16, 3, 32, 32\) for 16 images; logits of shape \(16, 4\) are wanted"
    with pytest.raises(ExportError, match=text):
        logits(Features(), IMAGES, num_classes=4)
