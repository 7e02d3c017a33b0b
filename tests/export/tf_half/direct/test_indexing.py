"""Gathers and scatters against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize("axis", [1, -1, 2])
@pytest.mark.parametrize("indices", [1, -1, [0, 2, 1], [1, 2], [-1, 0], [[0, 1], [2, 1]]])
def test_gather(agree, rng, axis, indices):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("Gather", ["x", "i"], ["y"], axis=axis), {"x": x}, {"i": np.array(indices)})


def test_gather_from_a_table(agree, rng):
    table = rng.standard_normal((7, 3), np.float32)
    node = helper.make_node("Gather", ["t", "i"], ["y"], axis=0)
    agree(node, {"i": rng.integers(-7, 7, (2, 4))}, {"t": table})


def test_gather_elements(agree, rng):
    x = rng.standard_normal((2, 3, 4), np.float32)
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], axis=2)
    agree(node, {"x": x, "i": rng.integers(-4, 4, (2, 3, 6))})


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_gather_nd(agree, rng, batch_dims):
    x = rng.standard_normal((2, 3, 4), np.float32)
    indices = rng.integers(0, 2, (2, 5, 2))
    agree(helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=batch_dims), {"x": x, "i": indices})


def test_scatter_nd(agree, rng):
    constants = {"i": np.array([[0, 1], [1, -1]]), "u": rng.standard_normal((2, 4), np.float32)}
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"])
    agree(node, {"x": rng.standard_normal((2, 3, 4), np.float32)}, constants)


def test_scatter_elements(agree, rng):
    constants = {"i": np.array([[0, 2], [1, -1]]), "u": rng.standard_normal((2, 2), np.float32)}
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)
    agree(node, {"x": rng.standard_normal((2, 4), np.float32)}, constants)


def test_one_hot(agree):
    constants = {"d": np.int64(4), "v": np.array([0.5, 2], np.float32)}
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"], axis=1)
    agree(node, {"i": np.array([[0, -1], [3, 2]])}, constants)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [0, 1])
def test_grid_sample(agree, rng, mode, padding_mode, align_corners):
    attributes = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    feeds = {
        "x": rng.standard_normal((2, 3, 5, 6), np.float32),
        "g": (2.4 * rng.random((2, 4, 7, 2)) - 1.2).astype(np.float32),
    }
    # the grid is not an image: it arrives as it is
    agree(helper.make_node("GridSample", ["x", "g"], ["y"], **attributes), feeds, opset=20)
