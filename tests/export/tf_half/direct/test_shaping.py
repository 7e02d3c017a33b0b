"""Shape arithmetic and axis shuffling against ONNX Runtime, with an open batch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize(
    ("permutation", "target"),
    [
        ([0, 1, 2, 3], [0, -1]),
        ([0, 1, 2, 3], [0, 12, 10]),
        ([0, 1, 2, 3], [-1, 10]),
        ([0, 1, 2, 3], [0, 3, 2, 2, 5, 2]),
        ([0, 2, 3, 1], [0, -1, 3]),
        ([0, 2, 3, 1], [0, 2, 2, 10, 3]),
        ([0, 2, 3, 1], [0, 4, 5, 2, 1, 3]),
        ([0, 2, 3, 1], [0, 120]),
        ([0, 2, 3, 1], [-1]),
        ([0, 3, 1, 2], [0, 10, 12]),
        ([0, 3, 1, 2], [0, 5, 2, 3, 2, 2]),
        ([0, 3, 1, 2], [-1, 6]),
        ([1, 0, 3, 2], [3, -1, 40]),
        ([1, 0, 3, 2], [3, -1, 5, 8]),
        ([1, 0, 3, 2], [-1, 4]),
    ],
)
def test_reshape_after_transpose(agree, rng, permutation, target):
    """Storage is reshaped where possible, and brought into ONNX's order where not; the answer is the same."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=permutation),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["s"]),
        helper.make_node("Abs", ["s"], ["y"]),
    ]
    agree(nodes, {"x": rng.standard_normal((2, 3, 4, 10), np.float32)}, {"shape": np.array(target)})


@pytest.mark.parametrize("axis", [0, 1, 2, 4, -1])
def test_flatten(agree, rng, axis):
    agree(
        helper.make_node("Flatten", ["x"], ["y"], axis=axis),
        {"x": rng.standard_normal((2, 3, 4, 5), np.float32)},
    )


def test_shape_arithmetic_follows_the_batch(agree, rng):
    """Windows as Swin writes them: [N, H, W, C] -> [N * windows, 2, 2, C], computed from Shape, and back."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Mul", ["n", "six"], ["windows"]),
        helper.make_node("Unsqueeze", ["windows", "axis0"], ["w1"]),
        helper.make_node("Unsqueeze", ["n", "axis0"], ["n1"]),
        helper.make_node("Concat", ["n1", "split"], ["split_shape"], axis=0),
        helper.make_node("Concat", ["w1", "window"], ["window_shape"], axis=0),
        helper.make_node("Reshape", ["x", "split_shape"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Reshape", ["b", "window_shape"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["d"], axes=[1, 2]),
        helper.make_node("Shape", ["d"], ["ds"]),
        helper.make_node("Gather", ["ds", "zero"], ["m"], axis=0),
        helper.make_node("Div", ["m", "six"], ["n2"]),
        helper.make_node("Unsqueeze", ["n2", "axis0"], ["n3"]),
        helper.make_node("Concat", ["n3", "rest"], ["out_shape"], axis=0),
        helper.make_node("Reshape", ["d", "out_shape"], ["y"]),
    ]
    constants = {
        "zero": np.int64(0),
        "six": np.int64(6),
        "axis0": np.array([0]),
        "split": np.array([2, 2, 3, 2, 5]),
        "window": np.array([2, 2, 5]),
        "rest": np.array([6, 5]),
    }
    agree(nodes, {"x": rng.standard_normal((3, 4, 6, 5), np.float32)}, constants)


def test_expand_to_the_batch(agree, rng):
    """A class token joins the patches of every image."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "i0", "i1"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("v", 7, [1], [1])),
        helper.make_node("Mul", ["ones", "minus"], ["negative"]),
        helper.make_node("Equal", ["shape", "negative"], ["mask"]),
        helper.make_node("Where", ["mask", "ones", "shape"], ["final"]),
        helper.make_node("Expand", ["token", "final"], ["tokens"]),
        helper.make_node("Concat", ["tokens", "x"], ["y"], axis=1),
    ]
    constants = {
        "i0": np.array([0]),
        "i1": np.array([1]),
        "rest": np.array([-1, -1]),
        "three": np.array([3]),
        "minus": np.int64(-1),
        "token": rng.standard_normal((1, 1, 6), np.float32),
    }
    agree(nodes, {"x": rng.standard_normal((3, 4, 6), np.float32)}, constants)


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(agree, rng, opset):
    x = rng.standard_normal((2, 1, 4, 1), np.float32)
    if opset == 11:
        nodes = [
            helper.make_node("Squeeze", ["x"], ["a"], axes=[1, 3]),
            helper.make_node("Unsqueeze", ["a"], ["b"], axes=[0, 2]),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
        agree(nodes, {"x": x}, opset=opset)
    else:
        nodes = [
            helper.make_node("Squeeze", ["x", "s"], ["a"]),
            helper.make_node("Unsqueeze", ["a", "u"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
        agree(nodes, {"x": x}, {"s": np.array([1, -1]), "u": np.array([0, -1])}, opset=opset)


def test_range_and_size_of_the_batch(agree, rng):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=1),
        helper.make_node("Unsqueeze", ["f", "axis1"], ["u"]),
        helper.make_node("Add", ["x", "u"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "axis1": np.array([1])}
    agree(nodes, {"x": rng.standard_normal((3, 4), np.float32)}, constants)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(agree, rng, mode):
    x = rng.standard_normal((2, 12, 3, 4), np.float32)
    agree(helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode), {"x": x})


def test_space_to_depth(agree, rng):
    x = rng.standard_normal((2, 3, 4, 6), np.float32)
    agree(helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2), {"x": x})


@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(agree, rng, upper):
    x = rng.standard_normal((2, 4, 4), np.float32)
    agree(helper.make_node("Trilu", ["x", "k"], ["y"], upper=upper), {"x": x}, {"k": np.int64(1)})
