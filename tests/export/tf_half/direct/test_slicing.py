"""Joining, cutting, padding and repeating against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

FAR = 2**63 - 1


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [1], None),
        ([0, 1], [2, FAR], [2, 3], None),
        ([-2], [FAR], [3], None),
        ([0], [-1], [3], None),
        ([-1], [-FAR], [2], [-1]),
        ([1], [FAR], [3], [2]),
        ([3], [0], [2], [-2]),
        ([0], [FAR], [0], None),
        ([1], [FAR], [0], None),
        ([5], [1], [1], None),
    ],
)
def test_slice(agree, rng, *, starts, ends, axes, steps):
    constants = {"s": np.array(starts), "e": np.array(ends), "a": np.array(axes)}
    if steps:
        constants["t"] = np.array(steps)
    x = rng.standard_normal((3, 4, 5, 6), np.float32)
    agree(helper.make_node("Slice", ["x", *constants], ["y"]), {"x": x}, constants)


def test_slice_by_attributes(agree, rng):
    x = rng.standard_normal((3, 4, 5, 6), np.float32)
    agree(
        helper.make_node("Slice", ["x"], ["y"], starts=[1, -3], ends=[3, 1000], axes=[1, 3]),
        {"x": x},
        opset=9,
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(agree, rng, axis):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Concat", ["x", "t", "c"], ["y"], axis=axis),
    ]
    x = rng.standard_normal((2, 3, 4, 4), np.float32)
    agree(nodes, {"x": x}, {"c": rng.standard_normal((2, 3, 4, 4), np.float32)}, dynamic=axis == 0)


@pytest.mark.parametrize(
    ("constants", "attributes", "parts", "opset"),
    [
        ({"s": np.array([1, 3, 2])}, {"axis": 1}, 3, 17),
        ({}, {"axis": 1}, 2, 17),
        ({}, {"axis": -1, "num_outputs": 3}, 3, 18),
        ({}, {"axis": 1, "split": [4, 2]}, 2, 11),
    ],
)
def test_split(agree, rng, *, constants, attributes, parts, opset):
    outputs = [f"y{k}" for k in range(parts)]
    node = helper.make_node("Split", ["x", *constants], outputs, **attributes)
    agree(node, {"x": rng.standard_normal((2, 6, 4, 5), np.float32)}, constants, outputs=outputs, opset=opset)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize(
    "pads", [[0, 0, 1, 2, 0, 0, 3, 1], [0, 1, 0, 0, 0, 1, 0, 2], [0, 0, 1, 0, 0, 0, -1, -2]]
)
def test_pad(agree, rng, mode, pads):
    if mode != "constant" and min(pads) < 0:
        pads = [abs(entry) for entry in pads]
    x = rng.standard_normal((2, 3, 5, 6), np.float32)
    constants = {"p": np.array(pads)}
    inputs = ["x", "p"]
    if mode == "constant":
        constants["v"] = np.float32(1.5)
        inputs.append("v")
    agree(helper.make_node("Pad", inputs, ["y"], mode=mode), {"x": x}, constants)


def test_pad_some_axes(agree, rng):
    x = rng.standard_normal((2, 3, 5, 6), np.float32)
    constants = {"p": np.array([1, 2, 0, 1]), "a": np.array([2, -1])}
    agree(helper.make_node("Pad", ["x", "p", "", "a"], ["y"]), {"x": x}, constants, opset=18)


def test_pad_by_attributes(agree, rng):
    x = rng.standard_normal((2, 3, 5, 6), np.float32)
    agree(helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 2, 2], value=0.5), {"x": x}, opset=10)


def test_tile(agree, rng):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("Tile", ["x", "r"], ["y"]), {"x": x}, {"r": np.array([1, 2, 1, 3])})
