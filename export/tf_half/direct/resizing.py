"""Resize and Upsample: one small matrix per axis, computed here exactly as ONNX defines it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.registry import choice, constant_input, op
from isthmus.export.tf_half.direct.values import Value, channels_last, graph_constant

_COORDINATES: dict[str, Callable[[np.ndarray, int, int, float], np.ndarray]] = {
    # (output index, input size, output size, scale) -> position in the input
    "half_pixel": lambda i, _n, _m, s: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, _n, m, s: (i + 0.5) / s - 0.5 if m > 1 else np.zeros_like(i),
    "align_corners": lambda i, n, m, _s: i * (n - 1) / (m - 1) if m > 1 else np.zeros_like(i),
    "asymmetric": lambda i, _n, _m, s: i / s,
    "half_pixel_symmetric": lambda i, n, m, s: n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5,
}
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@op("Resize", since=11)
def resize(
    node: Node, x: Value, _roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Value:
    """Nearest, linear or cubic, with or without antialiasing."""
    axes = [axis % x.rank for axis in node.attrs.get("axes") or range(x.rank)]
    factors: dict[int, tuple[int, float]] = {}
    if scales is not None and constant_input(node, scales, "scales").size:
        for axis, scale in zip(axes, constant_input(node, scales, "scales").tolist(), strict=True):
            if scale != 1:
                # In float32, as ONNX Runtime: 3 * float32(7/3) is 7 there, and 6.9999998 in float64.
                size = np.floor(np.float32(x.shape[axis] or 0) * np.float32(scale))
                factors[axis] = (int(size), scale)
    elif sizes is not None:
        factors = _from_sizes(node, x, axes, sizes)
    return _resize(node, x, factors)


def _from_sizes(node: Node, x: Value, axes: list[int], sizes: Value) -> dict[int, tuple[int, float]]:
    """Axes that change, with their new size; the batch axis may be given as the batch itself."""
    choice(node, "keep_aspect_ratio_policy", ("stretch",), "stretch")
    if sizes.constant is not None:
        wanted = [int(entry) for entry in sizes.constant]
    elif sizes.affine is not None:
        slopes, offsets = sizes.affine
        wanted = [-1 if slope else int(offset) for slope, offset in zip(slopes, offsets, strict=True)]
    else:
        raise node.unsupported("its sizes must not depend on the pixels")
    factors = {}
    for axis, size in zip(axes, wanted, strict=True):
        have = x.shape[axis]
        if have is not None and size not in (have, -1):
            factors[axis] = (size, size / have)
    return factors


@op("Resize", since=10)
@op("Upsample", since=9)
def upsample(node: Node, x: Value, scales: Value) -> Value:
    """Before opset 11: asymmetric coordinates, floor."""
    node.attrs.setdefault("coordinate_transformation_mode", "asymmetric")
    node.attrs.setdefault("nearest_mode", "floor")
    return resize(node, x, None, scales)


def _resize(node: Node, x: Value, factors: dict[int, tuple[int, float]]) -> Value:
    mode = choice(node, "mode", ("nearest", "linear", "cubic"), "nearest")
    how = choice(node, "coordinate_transformation_mode", tuple(_COORDINATES), "half_pixel")
    if any(x.shape[axis] is None for axis in factors):
        raise node.unsupported("resizing the batch axis")
    if not factors:
        return x
    if mode == "linear" and _is_plain_bilinear(node, x, how, factors):
        order = channels_last(4)
        target = [factors.get(axis, (x.shape[axis], 1.0))[0] for axis in (2, 3)]
        tensor = tf.raw_ops.ResizeBilinear(images=x.stored(order), size=target, half_pixel_centers=True)
        return Value.of(tensor, order)
    order = channels_last(x.rank) if x.rank > 2 and not {0, 1} & set(factors) else x.order
    tensor = x.stored(order)
    for axis, (size, scale) in sorted(factors.items()):
        have = x.shape[axis] or 0
        position = order.index(axis)
        coordinates = _COORDINATES[how](np.arange(size, dtype=np.float64), have, size, scale)
        if mode == "nearest":
            rounding = _ROUNDINGS[choice(node, "nearest_mode", tuple(_ROUNDINGS), "round_prefer_floor")]
            # float32 as ONNX Runtime computes it, so that ties fall the same way
            rows = rounding(coordinates.astype(np.float32)).astype(np.int64).clip(0, have - 1)
            tensor = tf.gather(tensor, rows, axis=position)
        else:
            tensor = _apply(tensor, _weights(node, mode, coordinates, have, scale), position)
    return Value.of(tensor, order)


def _is_plain_bilinear(node: Node, x: Value, how: str, factors: dict[int, tuple[int, float]]) -> bool:
    """Whether TensorFlow's own kernel computes the same thing."""
    exact = all(abs((x.shape[axis] or 0) * scale - size) < 1e-9 for axis, (size, scale) in factors.items())
    centred = how == "half_pixel" or (
        how == "pytorch_half_pixel" and all(size > 1 for size, _ in factors.values())
    )
    plain = not node.attrs.get("antialias", 0) and not node.attrs.get("exclude_outside", 0)
    return x.rank == 4 and set(factors) <= {2, 3} and exact and centred and plain and x.dtype == tf.float32


def _apply(tensor: Any, weights: np.ndarray, axis: int) -> Any:
    """Multiply [out, in] weights into one storage axis."""
    shape = tensor.shape.as_list()
    rank = len(shape)
    if axis == rank - 1:
        return (
            tf.linalg.matvec(graph_constant(weights), tensor) if rank == 1 else tf.matmul(tensor, weights.T)
        )
    tail = int(np.prod(shape[axis + 1 :]))
    flat = tf.reshape(tensor, [-1, shape[axis], tail])
    result = tf.matmul(graph_constant(weights), flat)
    lead = [-1 if dim is None else dim for dim in shape[:axis]]
    return tf.reshape(result, [*lead, weights.shape[0], *shape[axis + 1 :]])


def _weights(node: Node, mode: str, coordinates: np.ndarray, have: int, scale: float) -> np.ndarray:
    """[out, in] interpolation weights."""
    cubic_a = node.attrs.get("cubic_coeff_a", -0.75)
    kernel, support = (_triangle, 1.0) if mode == "linear" else (lambda t: _cubic(t, cubic_a), 2.0)
    antialias = bool(node.attrs.get("antialias", 0)) and scale < 1
    stretch = 1 / scale if antialias else 1.0
    reach = int(np.ceil(support * stretch)) + 1
    base = np.floor(coordinates).astype(np.int64)
    taps = base[:, None] + np.arange(-reach, reach + 1)[None]
    weights = kernel((taps - coordinates[:, None]) / stretch)
    inside = (taps >= 0) & (taps < have)
    if node.attrs.get("exclude_outside", 0):
        weights = np.where(inside, weights, 0)
    if antialias or node.attrs.get("exclude_outside", 0):
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(coordinates), have))
    np.add.at(matrix, (np.arange(len(coordinates))[:, None], taps.clip(0, have - 1)), weights)
    return matrix.astype(np.float32)


def _triangle(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(t), 0)


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
