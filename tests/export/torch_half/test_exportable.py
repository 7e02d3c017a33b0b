"""Layers in the form that crosses answer what timm's own do, at every batch size, through either exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from timm.layers import CondConv2d
from torch import nn

from isthmus.export import checkpoint as checkpoints
from isthmus.export.torch_half.exportable import MixtureConv2d, replace_unexportable
from isthmus.export.torch_half.model import load_model, logits
from isthmus.export.torch_half.onnx_model import lowest_opset, write_onnx

NUM_EXPERTS = 3


class Routed(nn.Module):
    """CondConv2d as timm's CondConvResidual calls it, and logits of what it gives."""

    def __init__(self, layer: CondConv2d) -> None:
        super().__init__()
        self.routing = nn.Linear(3, NUM_EXPERTS)
        self.widen = nn.Conv2d(3, layer.in_channels, 1)
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shares = torch.sigmoid(self.routing(images.mean((2, 3))))
        return self.layer(self.widen(images), shares).amax((2, 3))


def routed(**arguments: object) -> Routed:
    torch.manual_seed(0)
    return Routed(CondConv2d(8, 8, num_experts=NUM_EXPERTS, **arguments)).eval()


LAYERS = {
    "pointwise": {"kernel_size": 1},
    "pointwise with a bias": {"kernel_size": 1, "bias": True},
    "pointwise with a stride": {"kernel_size": 1, "stride": 2},
    "depthwise": {"kernel_size": 3, "groups": 8, "stride": 2, "bias": True},
    "grouped and dilated": {"kernel_size": 3, "groups": 2, "dilation": 2},
    "padded as TensorFlow does": {"kernel_size": 5, "groups": 8, "stride": 2, "padding": "same"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_image_is_convolved_with_its_own_mixture(name: str) -> None:
    model = routed(**LAYERS[name])
    images = torch.randn(5, 3, 13, 10)
    with torch.inference_mode():
        expected = model(images)
        changed = replace_unexportable(model)
        assert changed is model
        assert isinstance(model.layer, MixtureConv2d)
        np.testing.assert_allclose(model(images), expected, atol=2e-6)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["pointwise with a bias", "depthwise"])
def test_it_crosses_with_a_dynamic_batch(name: str, exporter: str, tmp_path: Path) -> None:
    model = replace_unexportable(routed(**LAYERS[name]))
    images = np.random.default_rng(0).normal(size=(5, 12, 12, 3)).astype(np.float32)
    write_onnx(
        model, images[:2], tmp_path / "m.onnx", exporter=exporter, opset=max(17, lowest_opset(exporter))
    )
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        with torch.inference_mode():
            expected = model(torch.from_numpy(nchw[:count]))
        (given,) = session.run(None, {"images": nchw[:count]})
        np.testing.assert_allclose(given, expected, atol=2e-6)


def test_a_checkpoint_s_model_has_such_layers_replaced(make_checkpoint: Callable[..., Path]) -> None:
    record = checkpoints.read(make_checkpoint(model="efficientnet_cc_b0_4e"))
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    model = load_model(record, exportable=True)
    assert not [layer for layer in model.modules() if isinstance(layer, CondConv2d)]
    given = logits(model, images, num_classes=4)
    expected = logits(load_model(record, exportable=False), images, num_classes=4)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * expected.std())
