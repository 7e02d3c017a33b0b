"""Conv and ConvTranspose in every form that image models use, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from onnx import helper

from isthmus.export.tf_half.direct.convolution import conv
from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.values import Run, Value, current_run

CONVOLUTIONS = [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    {"pads": [0, 1, 2, 3]},
    {"pads": [0, 0, 1, 1], "strides": [2, 2]},
    {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    {"pads": [1, 2, 3, 2], "dilations": [1, 2], "strides": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID", "strides": [3, 2]},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("channels", "outputs", "groups"), [(6, 4, 1), (6, 6, 6), (6, 12, 6), (6, 4, 2), (1, 3, 1)]
)
def test_conv2d(agree, rng, *, attributes, channels, outputs, groups):
    x = rng.standard_normal((3, channels, 11, 10), np.float32)
    w = rng.standard_normal((outputs, channels // groups, 3, 3), np.float32)
    b = rng.standard_normal(outputs, np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, **attributes)
    agree(node, {"x": x}, {"w": w, "b": b})


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "attributes", [{}, {"pads": [2, 1], "strides": [2]}, {"dilations": [2], "pads": [3, 3]}]
)
def test_conv1d(agree, rng, attributes, groups):
    x = rng.standard_normal((2, 4, 13), np.float32)
    w = rng.standard_normal((8, 4 // groups, 3), np.float32)
    agree(helper.make_node("Conv", ["x", "w"], ["y"], group=groups, **attributes), {"x": x}, {"w": w})


@pytest.mark.parametrize(
    "attributes", [{"group": 1}, {"group": 2, "pads": [1, 0, 1, 1, 1, 0], "strides": [1, 2, 1]}]
)
def test_conv3d(agree, rng, attributes):
    x = rng.standard_normal((2, 4, 5, 6, 7), np.float32)
    w = rng.standard_normal((6, 4 // attributes["group"], 3, 2, 3), np.float32)
    agree(helper.make_node("Conv", ["x", "w"], ["y"], **attributes), {"x": x}, {"w": w})


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [2, 3], "pads": [1, 1, 1, 0], "output_padding": [1, 0]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"dilations": [2, 1], "pads": [1, 0, 0, 1]},
        {"strides": [3, 2], "output_shape": [14, 11]},
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose(agree, rng, attributes, groups):
    x = rng.standard_normal((2, 4, 5, 6), np.float32)
    w = rng.standard_normal((4, 6 // groups, 3, 3), np.float32)
    b = rng.standard_normal(6, np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups, **attributes)
    agree(node, {"x": x}, {"w": w, "b": b})


def test_conv_transpose_1d(agree, rng):
    x, w = rng.standard_normal((2, 4, 7), np.float32), rng.standard_normal((4, 3, 4), np.float32)
    agree(helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2], pads=[1, 1]), {"x": x}, {"w": w})


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [8, 9])
def test_no_padded_copy_before_a_depthwise_stride_as_torch_pads_it(agree, rng, kernel, size):
    """An even size wants another padding than SAME gives: the kernel grows instead of the image."""
    x = rng.standard_normal((2, size, size, 4), np.float32)
    w = rng.standard_normal((4, 1, kernel, kernel), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, strides=[2, 2], pads=[kernel // 2] * 4)
    agree(node, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}, {"w": w})

    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    emitted = Node(op_type="Conv", inputs=["x", "w"], outputs=["y"], attrs=attributes)
    token = current_run.set(Run(batch_sizes=(2,)))
    with tf.Graph().as_default() as graph:
        conv(emitted, Value.of(tf.constant(x), (0, 2, 3, 1)), Value.const(w))
    current_run.reset(token)
    operators = {operation.type for operation in graph.get_operations()}
    assert "DepthwiseConv2dNative" in operators
    assert "Pad" not in operators
