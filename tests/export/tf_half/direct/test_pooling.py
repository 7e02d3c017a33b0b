"""Pooling windows, paddings and rounding against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

WINDOWS = [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 2, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [1, 1], "strides": [2, 2]},
]


@pytest.mark.parametrize("size", [(7, 8), (11, 5)])
@pytest.mark.parametrize("attributes", WINDOWS)
def test_max_pool(agree, rng, attributes, size):
    x = rng.standard_normal((2, 3, *size), np.float32) - 3
    agree(helper.make_node("MaxPool", ["x"], ["y"], **attributes), {"x": x})


def test_max_pool_dilated(agree, rng):
    x = rng.standard_normal((2, 3, 12, 12), np.float32)
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], dilations=[2, 2], pads=[1, 1, 1, 1])
    agree(node, {"x": x})


@pytest.mark.parametrize("include_pad", [0, 1])
@pytest.mark.parametrize("size", [(7, 8), (11, 5)])
@pytest.mark.parametrize("attributes", WINDOWS)
def test_average_pool(agree, rng, attributes, size, include_pad):
    x = rng.standard_normal((2, 3, *size), np.float32)
    node = helper.make_node("AveragePool", ["x"], ["y"], count_include_pad=include_pad, **attributes)
    agree(node, {"x": x}, opset=19)


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_pool_1d(agree, rng, op_type):
    x = rng.standard_normal((2, 3, 9), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"], kernel_shape=[3], strides=[2], pads=[1, 1]), {"x": x})


def test_lp_pool(agree, rng):
    x = rng.standard_normal((2, 3, 8, 8), np.float32)
    agree(helper.make_node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], p=3), {"x": x})


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global(agree, rng, op_type):
    x = rng.standard_normal((3, 5, 4, 6), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"]), {"x": x})
