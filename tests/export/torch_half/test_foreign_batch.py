"""Transformers that were exported for one batch size, torch.onnx.export's default, answer at every one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from isthmus.export.torch_half import foreign_onnx
from isthmus.export.torch_half.foreign_form import normalized

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    ),
    "beit": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    ),
    # Two blocks: the second one shifts its windows and has a mask.
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,)},
    ),
    # Squeeze and excitation: weights with shapes of their own.
    "resnet": ("resnet10t", {}),
}


@pytest.mark.parametrize(
    ("model", "batch", "dynamo"),
    [
        ("vit", 1, False),
        ("vit", 2, True),
        ("beit", 1, False),
        ("swin", 1, False),
        ("swin", 1, True),
        ("swin", 2, True),
        ("resnet", 1, False),
    ],
)
def test_a_fixed_batch_becomes_a_free_one(model: str, batch: int, dynamo: bool, tmp_path: Path) -> None:
    import timm
    import torch

    name, args = MODELS[model]
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5, **args).eval()
    for parameter in net.parameters():
        # Zeros, as tables of positions and tokens start, would hide what is done to them.
        torch.nn.init.normal_(parameter, std=0.2)
    more = {"external_data": False, "verbose": False} if dynamo else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(batch, 3, 32, 32),), str(tmp_path / "m.onnx"), dynamo=dynamo, **more
        )
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        wanted = np.concatenate([net(torch.from_numpy(one[None])).numpy() for one in nchw])
    found = foreign_onnx.read(tmp_path / "m.onnx")
    assert found.batch == batch
    made = normalized(found, images=images, reference=found.answers(images))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in (1, 2, 3, 4):
        (got,) = session.run(["logits"], {"images": nchw[:size]})
        np.testing.assert_allclose(got, wanted[:size], rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
