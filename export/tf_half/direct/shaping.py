"""Shapes: what an exporter asks about them, and operators that only rename or reorder axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Dims, Node, static_dims
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.layout import reshape as reshape_value
from isthmus.export.tf_half.direct.registry import choice, constant_input, constant_ints, op
from isthmus.export.tf_half.direct.values import Value, channels_last, shape_tensor


@op("Constant")
def constant(node: Node) -> Value:
    """The value, whichever attribute holds it."""
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
        if name in node.attrs:
            return Value.const(np.array(node.attrs[name], dtype))
    if "value_ints" in node.attrs:
        return Value.const(np.array(node.attrs["value_ints"], np.int64))
    if "value" not in node.attrs:
        raise node.unsupported("only numeric dense constants")
    return Value.const(node.attrs["value"])


@op("Shape")
def shape(node: Node, x: Value) -> Value:
    """Sizes of the axes from `start` to `end` (opset 15)."""
    start, end = node.attrs.get("start", 0), node.attrs.get("end")
    sizes = x.shape[slice(start, end)]
    if None not in sizes:
        return Value.const(np.array(sizes, np.int64))
    return Value.of(tf.cast(tf.shape(x.logical())[slice(start, end)], tf.int64))


@op("Size")
def size(_: Node, x: Value) -> Value:
    """Number of elements."""
    sizes = [dim for dim in x.shape if dim is not None]
    if len(sizes) == x.rank:
        return Value.const(np.array(np.prod(sizes, dtype=np.int64)))
    return Value.of(tf.size(x.logical(), out_type=tf.int64))


def _target(x: Value, sizes: list[int], keep_zero: bool) -> Dims:
    """A shape with 0 (copy) and -1 (infer) resolved against a statically shaped value."""
    known = [dim or 0 for dim in x.shape]
    resolved = [known[i] if entry == 0 and not keep_zero else entry for i, entry in enumerate(sizes)]
    if -1 in resolved:
        rest = int(np.prod([entry for entry in resolved if entry != -1], dtype=np.int64))
        total = int(np.prod(known, dtype=np.int64))
        resolved[resolved.index(-1)] = total // rest if rest else 0
    return static_dims(resolved)


def _recorded(node: Node) -> Dims | None:
    return node.out_dims[0] if node.out_dims else None


def _as_shape(node: Node, x: Value, target: Dims | None) -> Value:
    """Reshape to the recorded shape, or during a probe to the one computed from constants."""
    recorded = _recorded(node)
    if recorded is None:
        assert target is not None
        recorded = target
    return reshape_value(x, recorded)


@op("Reshape", since=5)
def reshape(node: Node, x: Value, target: Value | None = None) -> Value:
    """To a shape whose entries are constants or follow the batch."""
    if _recorded(node) is not None:
        return _as_shape(node, x, None)
    sizes = constant_ints(node, target, "shape")
    return _as_shape(node, x, _target(x, sizes, bool(node.attrs.get("allowzero", 0))))


@op("Flatten")
def flatten(node: Node, x: Value) -> Value:
    """To two axes, split at `axis`."""
    axis = node.attrs.get("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if _recorded(node) is not None:
        return _as_shape(node, x, None)
    known = [dim or 0 for dim in x.shape]
    products = [int(np.prod(part, dtype=np.int64)) for part in (known[:axis], known[axis:])]
    return _as_shape(node, x, static_dims(products))


def drop_axes(x: Value, axes: list[int]) -> Value:
    """Remove logical axes of size one, in place in storage."""
    dropped = {axis % x.rank for axis in axes}
    if x.constant is not None:
        return Value.const(x.constant.squeeze(tuple(dropped)))
    tensor = tf.squeeze(x.tensor, [x.axis(axis) for axis in dropped]) if dropped else x.tensor
    left = [axis for axis in x.order if axis not in dropped]
    renamed = {axis: position for position, axis in enumerate(sorted(left))}
    return Value.of(tensor, [renamed[axis] for axis in left])


def add_axes(x: Value, axes: list[int]) -> Value:
    """Insert logical axes of size one; in storage each goes right before the axis it precedes."""
    rank = x.rank + len(axes)
    added = sorted(axis % rank for axis in axes)
    if x.constant is not None:
        return Value.const(np.expand_dims(x.constant, tuple(added)))
    kept = [axis for axis in range(rank) if axis not in added]
    order = [kept[axis] for axis in x.order]
    tensor = x.tensor
    for axis in added:
        position = order.index(axis - 1) + 1 if axis - 1 in order else 0
        tensor = tf.expand_dims(tensor, position)
        order.insert(position, axis)
    return Value.of(tensor, order)


@op("Squeeze", since=13)
def squeeze(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Drop axes of size one: the given ones, or all."""
    if axes is None:
        return drop_axes(x, [axis for axis, dim in enumerate(x.shape) if dim == 1])
    return drop_axes(x, constant_ints(node, axes, "axes"))


@op("Squeeze", since=1)
def squeeze_1(node: Node, x: Value) -> Value:
    """Before opset 13 the axes were an attribute."""
    return drop_axes(x, node.attrs.get("axes") or [axis for axis, dim in enumerate(x.shape) if dim == 1])


@op("Unsqueeze", since=13)
def unsqueeze(node: Node, x: Value, axes: Value) -> Value:
    """Insert axes of size one."""
    return add_axes(x, constant_ints(node, axes, "axes"))


@op("Unsqueeze", since=1)
def unsqueeze_1(node: Node, x: Value) -> Value:
    """Before opset 13 the axes were an attribute."""
    return add_axes(x, node.attrs["axes"])


@op("Transpose")
def transpose(node: Node, x: Value) -> Value:
    """Costs nothing here: only the remembered order changes."""
    permutation = node.attrs.get("perm") or list(reversed(range(x.rank)))
    if x.constant is not None:
        return Value.const(x.constant.transpose(permutation))
    return Value.of(x.tensor, [permutation.index(axis) for axis in x.order])


@op("Expand", since=8)
def expand(node: Node, x: Value, target: Value) -> Value:
    """Broadcast to a shape (both ways, as numpy does)."""
    recorded = _recorded(node)
    if recorded is None:
        shape = np.broadcast_shapes(
            tuple(constant_ints(node, target, "shape")), tuple(dim or 0 for dim in x.shape)
        )
        recorded = static_dims(shape)
    elif x.dims == recorded:
        return x
    return Value.of(tf.broadcast_to(x.logical(), shape_tensor(recorded)))


@op("ConstantOfShape", since=9)
def constant_of_shape(node: Node, target: Value) -> Value:
    """Filled with one number."""
    fill = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(())
    recorded = _recorded(node)
    if recorded is None:
        return Value.const(np.full(constant_ints(node, target, "shape"), fill))
    return Value.of(tf.fill(shape_tensor(recorded), tf.constant(fill)))


@op("Range", since=11)
def range_(_: Node, start: Value, limit: Value, delta: Value) -> Value:
    """start, start + delta, … below limit."""
    if start.constant is not None and limit.constant is not None and delta.constant is not None:
        scalars = [value.constant.item() for value in (start, limit, delta) if value.constant is not None]
        return Value.const(np.arange(*scalars, dtype=start.constant.dtype))
    return Value.of(tf.range(start.logical(), limit.logical(), delta.logical()))


@op("EyeLike", since=9)
def eye_like(node: Node, x: Value) -> Value:
    """Ones on a diagonal."""
    import onnx

    rows, columns = (dim or 0 for dim in x.shape)
    dtype = x.dtype.as_numpy_dtype
    if "dtype" in node.attrs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attrs["dtype"])
    return Value.const(np.eye(rows, columns, node.attrs.get("k", 0), dtype))


@op("Dropout", since=1)
def dropout(node: Node, x: Value, _ratio: Value | None = None, training: Value | None = None) -> Value:
    """Inference: the input itself."""
    if training is not None and constant_input(node, training, "training_mode").any():
        raise node.unsupported("training mode; export the model in evaluation mode")
    if any(node.outputs[1:]):
        raise node.unsupported("its mask is read; export the model in evaluation mode")
    return x


@op("DepthToSpace")
def depth_to_space(node: Node, x: Value) -> Value:
    """Blocks of channels become pixels (DCR: depth, column, row; CRD: column, row, depth)."""
    mode = choice(node, "mode", ("DCR", "CRD"), "DCR")
    block = node.attrs["blocksize"]
    n, (c, *_), (h, *_), (w, *_) = x.known_dims()
    samples = len(n)

    def fixed(*sizes: int) -> Dims:
        return (n, *static_dims(sizes, samples))

    deep = c // block**2
    if mode == "DCR":
        split = reshape_value(x, fixed(block, block, deep, h, w))
        permutation = [0, 3, 4, 1, 5, 2]
    else:
        split = reshape_value(x, fixed(deep, block, block, h, w))
        permutation = [0, 1, 4, 2, 5, 3]
    moved = Value.of(split.stored(permutation))
    moved.dims = tuple(split.known_dims()[axis] for axis in permutation)
    return reshape_value(moved, fixed(deep, h * block, w * block))


@op("SpaceToDepth")
def space_to_depth(node: Node, x: Value) -> Value:
    """Blocks of pixels become channels."""
    choice(node, "mode", ("DCR",), "DCR")
    order = channels_last(4)
    return Value.of(tf.nn.space_to_depth(x.stored(order), node.attrs["blocksize"]), order)


@op("Trilu", since=14)
def trilu(node: Node, x: Value, k: Value | None = None) -> Value:
    """Upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(constant_input(node, k, "k").item())
    rows, columns = (dim or 0 for dim in x.shape[-2:])
    mask = np.ones((rows, columns), bool)
    mask = np.triu(mask, diagonal) if node.attrs.get("upper", 1) else np.tril(mask, diagonal)

    def keep(tensor: Any, wanted: Any) -> Any:
        return tf.where(wanted, tensor, tf.zeros_like(tensor))

    return elementwise(keep, x, Value.const(mask))
