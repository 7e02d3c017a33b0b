"""Activation functions against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize(
    ("op_type", "attributes", "opset"),
    [
        ("Relu", {}, 17),
        ("Sigmoid", {}, 17),
        ("Softplus", {}, 17),
        ("Softsign", {}, 17),
        ("Mish", {}, 18),
        ("HardSwish", {}, 17),
        ("HardSigmoid", {}, 17),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 17),
        ("LeakyRelu", {"alpha": 0.2}, 17),
        ("Elu", {"alpha": 0.7}, 17),
        ("Celu", {"alpha": 1.3}, 17),
        ("Selu", {}, 17),
        ("ThresholdedRelu", {"alpha": 0.5}, 17),
        ("Shrink", {"bias": 0.3, "lambd": 0.6}, 17),
        ("Gelu", {}, 20),
        ("Gelu", {"approximate": "tanh"}, 20),
    ],
)
def test_activation(agree, rng, op_type, attributes, opset):
    x = 4 * rng.standard_normal((2, 3, 5, 4), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"], **attributes), {"x": x}, opset=opset)


def test_prelu(agree, rng):
    x, slope = rng.standard_normal((2, 3, 5, 4), np.float32), rng.standard_normal((3, 1, 1), np.float32)
    agree(helper.make_node("PRelu", ["x", "s"], ["y"]), {"x": x}, {"s": slope})


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [1, -1, 2])
def test_softmax(agree, rng, op_type, axis):
    x = rng.standard_normal((2, 3, 5, 4), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"], axis=axis), {"x": x})


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_flattens_before_opset_13(agree, rng, op_type, axis):
    x = rng.standard_normal((2, 3, 5, 4), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"], axis=axis), {"x": x}, opset=11)
