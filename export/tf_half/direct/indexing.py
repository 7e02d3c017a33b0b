"""Gathering and scattering by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.registry import choice, constant_input, op
from isthmus.export.tf_half.direct.shaping import drop_axes
from isthmus.export.tf_half.direct.values import Value, graph_constant


def _positive(indices: Value, size: int | None, tensor: Any, axis: int) -> Any:
    """ONNX counts negative indices from the end; TensorFlow's kernels do not."""
    if indices.constant is not None:
        array = indices.constant
        if (array < 0).any():
            if size is None:
                limit = tf.cast(tf.shape(tensor)[axis], tf.int64)
                return tf.where(array < 0, tf.constant(array, tf.int64) + limit, tf.constant(array, tf.int64))
            array = np.where(array < 0, array + size, array)
        return graph_constant(array)
    found = indices.logical()
    limit = tf.cast(tf.shape(tensor)[axis] if size is None else size, found.dtype)
    return tf.where(found < 0, found + limit, found)


@op("Gather")
def gather(node: Node, x: Value, indices: Value) -> Value:
    """Rows along one axis, by an index tensor of any rank."""
    axis = node.attrs.get("axis", 0) % x.rank
    if x.constant is not None and indices.constant is not None:
        return Value.const(np.take(x.constant, indices.constant, axis))
    if indices.constant is not None and indices.rank <= 1:
        short = _as_slice(x, indices.constant, axis)
        if short is not None:
            return short if indices.rank else drop_axes(short, [axis])
    if indices.rank == 1:
        index = _positive(indices, x.shape[axis], x.tensor, x.axis(axis))
        return Value.of(tf.gather(x.stored(x.order), index, axis=x.axis(axis)), x.order)
    tensor = x.logical()
    index = _positive(indices, x.shape[axis], tensor, axis)
    return Value.of(tf.gather(tensor, index, axis=axis))


def _as_slice(x: Value, indices: np.ndarray, axis: int) -> Value | None:
    """Consecutive rows are a slice, which needs no index arithmetic at run time."""
    size = x.shape[axis]
    if size is None or not indices.size:
        return None
    rows = np.atleast_1d(np.where(indices < 0, indices + size, indices))
    if not (np.diff(rows) == 1).all():
        return None
    index: list[slice] = [slice(None)] * x.rank
    index[x.axis(axis)] = slice(int(rows[0]), int(rows[-1]) + 1)
    return Value.of(x.stored(x.order)[tuple(index)], x.order)


@op("GatherElements", since=11)
def gather_elements(node: Node, x: Value, indices: Value) -> Value:
    """numpy.take_along_axis, the other axes cut to the index's size."""
    axis = node.attrs.get("axis", 0) % x.rank
    tensor = x.logical()
    index = _positive(indices, x.shape[axis], tensor, axis)
    return Value.of(tf.gather_nd(tensor, _full_index(index, axis)))


def _full_index(index: Any, axis: int) -> Any:
    """Coordinates [..., rank]: for every element of `index` its own place, with `axis` replaced by it."""
    sizes = tf.unstack(tf.shape(index, out_type=index.dtype))
    grid = list(tf.meshgrid(*[tf.range(size) for size in sizes], indexing="ij"))
    grid[axis] = index
    return tf.stack(grid, -1)


@op("GatherND", since=11)
def gather_nd(node: Node, x: Value, indices: Value) -> Value:
    """Slices addressed by the last axis of the index."""
    tensor = x.logical()
    index = indices.logical()
    sizes = tf.cast(tf.shape(tensor), index.dtype)
    batch = node.attrs.get("batch_dims", 0)
    depth = index.shape[-1]
    index = tf.where(index < 0, index + sizes[batch : batch + depth], index)
    return Value.of(tf.gather_nd(tensor, index, batch_dims=batch))


_SCATTERS: dict[str, Callable[..., Any]] = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}


@op("ScatterND", since=11)
def scatter_nd(node: Node, x: Value, indices: Value, updates: Value) -> Value:
    """Write slices addressed by the last axis of the index."""
    reduction = choice(node, "reduction", tuple(_SCATTERS), "none")
    tensor, index = x.logical(), indices.logical()
    sizes = tf.cast(tf.shape(tensor), index.dtype)
    index = tf.where(index < 0, index + sizes[: index.shape[-1]], index)
    return Value.of(_SCATTERS[reduction](tensor, index, updates.logical()))


@op("ScatterElements", since=11)
def scatter_elements(node: Node, x: Value, indices: Value, updates: Value) -> Value:
    """Write single elements along one axis."""
    reduction = choice(node, "reduction", tuple(_SCATTERS), "none")
    axis = node.attrs.get("axis", 0) % x.rank
    tensor = x.logical()
    index = _positive(indices, x.shape[axis], tensor, axis)
    return Value.of(_SCATTERS[reduction](tensor, _full_index(index, axis), updates.logical()))


@op("OneHot", since=9)
def one_hot(node: Node, indices: Value, depth: Value, values: Value) -> Value:
    """Indices become vectors of an off and an on value."""
    size = int(constant_input(node, depth, "depth").item())
    off, on = tf.unstack(values.logical())
    index = indices.logical()
    index = tf.cast(index, tf.int64)
    index = tf.where(index < 0, index + size, index)
    return Value.of(tf.one_hot(index, size, on, off, axis=node.attrs.get("axis", -1)))


@op("NonZero", since=9)
def non_zero(_: Node, x: Value) -> Value:
    """Coordinates [rank, count]; only of constants does the count have a static size."""
    if x.constant is not None:
        return Value.const(np.stack(np.nonzero(x.constant)).astype(np.int64))
    tensor = x.logical()
    return Value.of(tf.transpose(tf.where(tf.not_equal(tensor, tf.zeros_like(tensor)))))


@op("GridSample", since=16)
def grid_sample(node: Node, x: Value, grid: Value) -> Value:
    """Bilinear or nearest samples of an image at coordinates in [-1, 1]."""
    mode = choice(node, "mode", ("bilinear", "linear", "nearest"), "bilinear")
    padding = choice(node, "padding_mode", ("zeros", "border"), "zeros")
    corners = bool(node.attrs.get("align_corners", 0))
    order = (0, 2, 3, 1)
    image, where = x.stored(order), grid.logical()
    height, width = image.shape[1], image.shape[2]

    def pixels(coordinate: Any, size: int) -> Any:
        position = (coordinate + 1) / 2 * (size - 1) if corners else ((coordinate + 1) * size - 1) / 2
        return tf.clip_by_value(position, 0, size - 1) if padding == "border" else position

    def sample(row: Any, column: Any) -> Any:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        safe_row = tf.cast(tf.clip_by_value(row, 0, height - 1), tf.int32)
        safe_column = tf.cast(tf.clip_by_value(column, 0, width - 1), tf.int32)
        found = tf.gather_nd(image, tf.stack([safe_row, safe_column], -1), batch_dims=1)
        return found * tf.cast(inside, found.dtype)[..., None]

    columns, rows = pixels(where[..., 0], width), pixels(where[..., 1], height)
    if mode == "nearest":
        return Value.of(sample(tf.round(rows), tf.round(columns)), order)
    top, left = tf.floor(rows), tf.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = sample(top, left) * (1 - right) + sample(top, left + 1) * right
    lower = sample(top + 1, left) * (1 - right) + sample(top + 1, left + 1) * right
    return Value.of(upper * (1 - down) + lower * down, order)
