"""Joining, cutting, padding and repeating along axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import common_order
from isthmus.export.tf_half.direct.registry import choice, constant_input, constant_ints, op
from isthmus.export.tf_half.direct.values import Value, identity


@op("Concat", since=4)
def concat(node: Node, *inputs: Value) -> Value:
    """Along one axis, in the order of axes that most of the operands already have."""
    axis = node.attrs["axis"]
    filled = [value for value in inputs if 0 not in value.shape] or list(inputs[:1])
    if len(filled) == 1:
        return filled[0]
    if all(value.constant is not None for value in filled):
        return Value.const(
            np.concatenate([value.constant for value in filled if value.constant is not None], axis)
        )
    order = common_order(filled)
    tensors = [value.stored(order) for value in filled]
    return Value.of(tf.concat(tensors, order.index(axis % len(order))), order)


@op("Split", since=13)
def split(node: Node, x: Value, sizes: Value | None = None) -> list[Value]:
    """Into the given sizes, or evenly into as many parts as there are outputs (the last may be smaller)."""
    return _split(node, x, None if sizes is None else constant_ints(node, sizes, "split"))


@op("Split", since=1)
def split_1(node: Node, x: Value) -> list[Value]:
    """Before opset 13 the sizes were an attribute."""
    return _split(node, x, node.attrs.get("split"))


def _split(node: Node, x: Value, sizes: list[int] | None) -> list[Value]:
    axis = node.attrs.get("axis", 0)
    parts = len(node.outputs)
    total = x.shape[axis]
    if sizes is None:
        if total is None:
            raise node.unsupported("splitting the batch axis evenly")
        each = -(-total // parts)
        sizes = [each] * (parts - 1) + [total - each * (parts - 1)]
    if x.constant is not None:
        return [Value.const(part) for part in np.split(x.constant, np.cumsum(sizes)[:-1], axis)]
    pieces = tf.split(x.tensor, len(sizes) if len(set(sizes)) == 1 else sizes, axis=x.axis(axis))
    return [Value.of(piece, x.order) for piece in pieces]


@op("Slice", since=10)
def slice_(
    node: Node, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """Strided ranges along some axes; bounds that follow the batch are allowed."""
    if node.out_dims is not None and node.out_dims[0] == x.dims and steps is None:
        return x
    first = _bounds(node, starts, "starts")
    last = _bounds(node, ends, "ends")
    which = list(range(len(first))) if axes is None else constant_ints(node, axes, "axes")
    step = [1] * len(first) if steps is None else constant_ints(node, steps, "steps")
    return _slice(x, list(zip(which, first, last, step, strict=True)))


@op("Slice", since=1)
def slice_1(node: Node, x: Value) -> Value:
    """Before opset 10 everything was an attribute."""
    first, last = node.attrs["starts"], node.attrs["ends"]
    which = node.attrs.get("axes") or list(range(len(first)))
    return _slice(x, [(a, b, e, 1) for a, b, e in zip(which, first, last, strict=True)])


def _bounds(node: Node, value: Value, what: str) -> list[Any]:
    if value.constant is not None:
        return constant_ints(node, value, what)
    if value.affine is None:
        raise node.unsupported(f"its {what} must not depend on the pixels")
    slopes, offsets = value.affine
    tensor = value.logical()
    return [tf.cast(tensor[i], tf.int32) if slopes[i] else int(offsets[i]) for i in range(slopes.shape[0])]


def _slice(x: Value, ranges: list[tuple[int, Any, Any, int]]) -> Value:
    index: list[slice] = [slice(None)] * x.rank
    for axis, start, end, step in ranges:
        index[x.axis(axis)] = _resolved(x.shape[axis], start, end, step)
    if all(entry == slice(None) for entry in index):
        return x
    return Value.of(x.stored(x.order)[tuple(index)], x.order)


def _resolved(size: int | None, start: Any, end: Any, step: int) -> slice:
    """One range as a Python slice; slice(None) when it takes everything."""
    if not isinstance(start, int) or not isinstance(end, int):
        return slice(start, end, step)
    if size is None:
        first, last = _open_ended(start, end, step)
        return slice(None) if (first, last, step) == (0, None, 1) else slice(first, last, step)
    first, last = _clamped(start, end, step, size)
    if (first, last, step) == (0, size, 1):
        return slice(None)
    return slice(first, None if last < 0 else last, step)  # below zero: a backward range down to the first


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int]:
    """Both ends as plain positions; -1 as the end of a backward range means "before the first"."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size)
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1)


def _open_ended(start: int, end: int, step: int) -> tuple[int | None, int | None]:
    """Along the batch: ONNX's "as far as possible" markers become None."""
    far = 2**31 - 1
    if step > 0:
        return start, None if end >= far else end
    return None if start >= far else start, None if end <= -far else end


@op("Pad", since=11)
def pad(node: Node, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None) -> Value:
    """Grow (or, with negative numbers, shrink) axes."""
    amounts = constant_ints(node, pads, "pads")
    number = 0 if fill is None else constant_input(node, fill, "constant_value").item()
    which = list(range(x.rank)) if axes is None else constant_ints(node, axes, "axes")
    return _pad(node, x, amounts, which, number)


@op("Pad", since=2)
def pad_2(node: Node, x: Value) -> Value:
    """Before opset 11 the amounts were attributes."""
    return _pad(node, x, node.attrs["pads"], list(range(x.rank)), node.attrs.get("value", 0.0))


def _pad(node: Node, x: Value, amounts: list[int], axes: list[int], number: float) -> Value:
    mode = choice(node, "mode", ("constant", "reflect", "edge", "wrap"), "constant")
    half = len(amounts) // 2
    table = np.zeros((x.rank, 2), np.int64)
    for axis, before, after in zip(axes, amounts[:half], amounts[half:], strict=True):
        table[x.axis(axis)] = before, after
    tensor = x.tensor if x.constant is None else x.stored(x.order)
    if (table < 0).any():
        tensor = tensor[tuple(slice(-min(b, 0), min(a, 0) or None) for b, a in table.tolist())]
        table = np.maximum(table, 0)
    if not table.any():
        return Value.of(tensor, x.order)
    if mode == "constant":
        return Value.of(tf.pad(tensor, table, constant_values=tf.cast(number, tensor.dtype)), x.order)
    for axis, (before, after) in enumerate(table.tolist()):
        if before or after:
            size = tensor.shape[axis]
            if size is None:
                raise node.unsupported(f"mode={mode} along the batch axis")
            numpy_mode = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode]
            source = np.pad(np.arange(size), (before, after), mode=numpy_mode)  # type: ignore[call-overload]
            tensor = tf.gather(tensor, source, axis=axis)
    return Value.of(tensor, x.order)


@op("Tile", since=6)
def tile(node: Node, x: Value, repeats: Value) -> Value:
    """Repeat along every axis."""
    if repeats.constant is not None:
        counts = constant_ints(node, repeats, "repeats")
        if x.constant is not None:
            return Value.const(np.tile(x.constant, counts))
        return Value.of(tf.tile(x.tensor, [counts[axis] for axis in x.order]), x.order)
    return Value.of(tf.tile(x.logical(), repeats.logical()), identity(x.rank))


@op("CenterCropPad", since=18)
def center_crop_pad(node: Node, x: Value, shape: Value) -> Value:
    """Crop or zero-pad axes to a shape, around the centre."""
    sizes = constant_ints(node, shape, "shape")
    axes = node.attrs.get("axes") or list(range(x.rank))
    amounts = np.zeros((x.rank, 2), np.int64)
    for axis, wanted in zip(axes, sizes, strict=True):
        have = x.shape[axis] or 0
        missing = wanted - have
        before = missing // 2 if missing >= 0 else -((-missing) // 2)
        amounts[axis % x.rank] = before, missing - before
    inner = Node(
        op_type="Pad", inputs=node.inputs[:1], outputs=node.outputs, name=node.name, opset=node.opset
    )
    return _pad(inner, x, [*amounts[:, 0].tolist(), *amounts[:, 1].tolist()], list(range(x.rank)), 0)
