"""Reductions over axes, arg-extrema, cumulative sums, top-k."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.registry import constant_input, constant_ints, op
from isthmus.export.tf_half.direct.values import Value, identity

_REDUCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    # function(tensor, axis=, keepdims=), opset from which the axes are an input
    "ReduceSum": (tf.reduce_sum, 13),
    "ReduceMean": (tf.reduce_mean, 18),
    "ReduceMax": (tf.reduce_max, 18),
    "ReduceMin": (tf.reduce_min, 18),
    "ReduceProd": (tf.reduce_prod, 18),
    "ReduceL1": (lambda x, **how: tf.reduce_sum(tf.abs(x), **how), 18),
    "ReduceL2": (lambda x, **how: tf.sqrt(tf.reduce_sum(tf.square(x), **how)), 18),
    "ReduceSumSquare": (lambda x, **how: tf.reduce_sum(tf.square(x), **how), 18),
    "ReduceLogSum": (lambda x, **how: tf.math.log(tf.reduce_sum(x, **how)), 18),
    "ReduceLogSumExp": (tf.reduce_logsumexp, 18),
}

# What is the same done axis after axis.
_STEPWISE = (tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min, tf.reduce_prod)


def reduce_value(x: Value, axes: list[int], keepdims: bool, function: Callable[..., Any]) -> Value:
    """Reduce logical axes in whatever order the value is stored."""
    reduced = {axis % x.rank for axis in axes}
    tensor = x.tensor if x.constant is None else x.logical()
    stored = sorted(x.axis(axis) for axis in reduced)
    if function in _STEPWISE and x.dtype.is_floating:
        result = _run_by_run(function, tensor, stored, keepdims)
    else:
        result = function(tensor, axis=stored, keepdims=keepdims)
    if keepdims:
        return Value.of(result, x.order)
    left = [axis for axis in x.order if axis not in reduced]
    rank_of = {axis: position for position, axis in enumerate(sorted(left))}
    return Value.of(result, [rank_of[axis] for axis in left])


def _run_by_run(function: Callable[..., Any], tensor: Any, axes: list[int], keepdims: bool) -> Any:
    """Reduce sorted axes, those that lie side by side at once.

    Asked for [1, 2, 4] at once, as the groups of channels-last features need, TensorFlow adds one number after the
    other: 5e-6 away from the mean of 200,000, and slower than two steps, which are 1e-7 away.
    """
    starts = [place for place, axis in enumerate(axes) if not place or axis != axes[place - 1] + 1]
    if len(starts) <= 1:
        return function(tensor, axis=axes, keepdims=keepdims)
    for start, end in itertools.pairwise([*starts, len(axes)]):
        tensor = function(tensor, axis=axes[start:end], keepdims=True)
    return tensor if keepdims else tf.squeeze(tensor, axis=axes)


def _register(op_type: str, function: Callable[..., Any], axes_input_since: int) -> None:
    def reduce(node: Node, x: Value, axes: list[int] | None) -> Value:
        if not axes:
            if node.attrs.get("noop_with_empty_axes", 0):
                # Without axes only the element-wise part of the reduction remains.
                return reduce_value(x, [], True, function)
            axes = list(identity(x.rank))
        return reduce_value(x, axes, bool(node.attrs.get("keepdims", 1)), function)

    def by_attribute(node: Node, x: Value) -> Value:
        return reduce(node, x, node.attrs.get("axes"))

    def by_input(node: Node, x: Value, axes: Value | None = None) -> Value:
        return reduce(node, x, None if axes is None else constant_ints(node, axes, "axes"))

    op(op_type, since=1)(by_attribute)
    op(op_type, since=axes_input_since)(by_input)


for _name, (_function, _since) in _REDUCTIONS.items():
    _register(_name, _function, _since)


def _arg(node: Node, x: Value, function: Callable[..., Any]) -> Value:
    axis = node.attrs.get("axis", 0)
    last = bool(node.attrs.get("select_last_index", 0))

    def find(tensor: Any, *, axis: list[int], keepdims: bool) -> Any:
        (only,) = axis
        if last:
            tensor = tf.reverse(tensor, [only])
        index = function(tensor, axis=only, output_type=tf.int64)
        if last:
            index = tf.cast(tf.shape(tensor)[only] - 1, tf.int64) - index
        return tf.expand_dims(index, only) if keepdims else index

    return reduce_value(x, [axis], bool(node.attrs.get("keepdims", 1)), find)


@op("ArgMax")
def arg_max(node: Node, x: Value) -> Value:
    """Index of the first (or last) maximum along an axis."""
    return _arg(node, x, tf.argmax)


@op("ArgMin")
def arg_min(node: Node, x: Value) -> Value:
    """Index of the first (or last) minimum along an axis."""
    return _arg(node, x, tf.argmin)


@op("CumSum", since=11)
def cum_sum(node: Node, x: Value, axis: Value) -> Value:
    """Running sum along an axis."""
    (logical,) = constant_ints(node, axis, "axis")
    tensor = tf.cumsum(
        x.stored(x.order),
        axis=x.axis(logical),
        exclusive=bool(node.attrs.get("exclusive", 0)),
        reverse=bool(node.attrs.get("reverse", 0)),
    )
    return Value.of(tensor, x.order)


@op("TopK", since=10)
def top_k(node: Node, x: Value, k: Value) -> list[Value]:
    """The k largest (or smallest) along an axis, sorted, and their indices."""
    count = int(constant_input(node, k, "k").item())
    axis = node.attrs.get("axis", -1) % x.rank
    order = (*[other for other in identity(x.rank) if other != axis], axis)
    tensor = x.stored(order)
    largest = bool(node.attrs.get("largest", 1))
    if not largest and not tensor.dtype.is_floating:
        raise node.unsupported("largest=0 of integers; only floats are ordered downwards")
    values, indices = tf.math.top_k(tensor if largest else -tensor, k=count, sorted=True)
    values = values if largest else -values
    return [Value.of(values, order), Value.of(tf.cast(indices, tf.int64), order)]
