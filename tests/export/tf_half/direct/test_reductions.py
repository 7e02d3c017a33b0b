"""Reductions against ONNX Runtime, by attribute and by input."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

OPERATORS = [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [-1], [2, 3], [1, 2]])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_axes_by_input(agree, rng, op_type, axes, keepdims):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    node = helper.make_node(op_type, ["x", "axes"], ["y"], keepdims=keepdims)
    agree(node, {"x": x}, {"axes": np.array(axes, np.int64)}, opset=18)


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceL2"])
def test_axes_by_attribute(agree, rng, op_type):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node(op_type, ["x"], ["y"], axes=[2, 3], keepdims=0), {"x": x}, opset=13)
    agree(helper.make_node(op_type, ["x"], ["y"], keepdims=1), {"x": x}, opset=13)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_groups_of_channels(agree, rng, op_type, keepdims, batch):
    """EvoNorm's: each group of channels with its pixels, wherever the lowering has put the channels."""
    x = rng.standard_normal((batch, 6, 4, 5), np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["g"]),
        helper.make_node(op_type, ["g", "axes"], ["y"], keepdims=keepdims),
    ]
    constants = {"groups": np.array([0, 2, 3, 4, 5]), "axes": np.array([2, 3, 4])}
    agree(nodes, {"x": x}, constants, opset=18, tolerance=2e-5)


def test_a_mean_over_groups_is_as_near_as_over_channels(agree, rng):
    """Over axes that lie apart TensorFlow adds one number after the other, and is 5e-6 off at batch 1."""
    x = np.abs(rng.standard_normal((1, 32, 112, 112), np.float32)) + np.float32(0.5)
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["g"]),
        helper.make_node("ReduceMean", ["g"], ["y"], axes=[2, 3, 4], keepdims=0),
    ]
    agree(nodes, {"x": x}, {"groups": np.array([0, 2, 16, 112, 112])}, tolerance=1e-6)


@pytest.mark.parametrize("select_last_index", [0, 1])
@pytest.mark.parametrize(("axis", "keepdims"), [(1, 0), (-1, 1), (2, 0)])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg(agree, rng, *, op_type, axis, keepdims, select_last_index):
    x = rng.integers(0, 3, (2, 3, 4, 5)).astype(np.float32)
    attributes = {"axis": axis, "keepdims": keepdims, "select_last_index": select_last_index}
    agree(helper.make_node(op_type, ["x"], ["y"], **attributes), {"x": x})


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_cum_sum(agree, rng, attributes):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("CumSum", ["x", "axis"], ["y"], **attributes), {"x": x}, {"axis": np.int64(2)})


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(agree, rng, largest):
    x = rng.standard_normal((2, 7, 4, 5), np.float32)
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1, largest=largest)
    agree(node, {"x": x}, {"k": np.array([3], np.int64)}, outputs=["y", "i"])
