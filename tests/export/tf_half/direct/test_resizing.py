"""Every interpolation that exporters write, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.5, 0.5), (1.7, 0.6)])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_by_scale(agree, rng, mode, coordinates, scales):
    x = rng.standard_normal((2, 3, 6, 10), np.float32)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    agree(node, {"x": x}, {"s": np.array([1, 1, *scales], np.float32)}, tolerance=1e-4)


@pytest.mark.parametrize("nearest_mode", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest_modes(agree, rng, nearest_mode, coordinates):
    x = rng.standard_normal((2, 3, 5, 7), np.float32)
    attributes = {"nearest_mode": nearest_mode, "coordinate_transformation_mode": coordinates}
    node = helper.make_node("Resize", ["x", "", "", "z"], ["y"], mode="nearest", **attributes)
    agree(node, {"x": x}, {"z": np.array([2, 3, 9, 4])}, dynamic=False)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(3, 4), (9, 5)])
def test_antialias(agree, rng, mode, size):
    x = rng.standard_normal((2, 3, 8, 8), np.float32)
    attributes = {"mode": mode, "antialias": 1, "cubic_coeff_a": -0.5, "axes": [2, 3]}
    node = helper.make_node("Resize", ["x", "", "", "z"], ["y"], **attributes)
    agree(node, {"x": x}, {"z": np.array(size)}, opset=18, tolerance=1e-4)


def test_exclude_outside(agree, rng):
    x = rng.standard_normal((2, 3, 6, 6), np.float32)
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic", exclude_outside=1)
    agree(node, {"x": x}, {"s": np.array([1, 1, 1.5, 2], np.float32)}, tolerance=1e-4)


def test_size_computed_from_shape(agree, rng):
    """Upsampling to another feature map's size, the batch in between."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Resize", ["p", "", "", "s"], ["y"], mode="nearest", nearest_mode="floor"),
    ]
    agree(nodes, {"x": rng.standard_normal((2, 3, 8, 6), np.float32)})


def test_upsample(agree, rng):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    node = helper.make_node("Upsample", ["x", "s"], ["y"], mode="nearest")
    agree(node, {"x": x}, {"s": np.array([1, 1, 2, 3], np.float32)}, opset=9)


@pytest.mark.parametrize(("have", "want"), [(3, 7), (3, 5), (5, 7)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_scale_that_float32_rounds_down_still_gives_the_whole_size(agree, rng, mode, have, want):
    """ONNX Runtime multiplies in float32: 3 * float32(7/3) is 7, in float64 it would be 6.9999998."""
    x = rng.standard_normal((2, 3, have, 4), np.float32)
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode=mode)
    scales = np.array([1, 1, want / have, 1], np.float32)
    assert np.floor(have * float(scales[2])) == want - 1
    (answer,) = agree(node, {"x": x}, {"s": scales}, tolerance=1e-4)
    assert answer.shape == (2, 3, want, 4)
