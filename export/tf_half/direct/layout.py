"""Axis-order bookkeeping: broadcasting values of different orders, reshaping without transposing first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Dim, Dims
from isthmus.export.tf_half.direct.values import (
    Order,
    Value,
    channels_last,
    contiguous,
    dims_spec,
    graph_constant,
    identity,
)


def aligned(values: Sequence[Value]) -> tuple[list[Any], Order]:
    """Tensors that broadcast against each other as ONNX (numpy) broadcasts the values, and the order.

    Constants are turned at lowering time; the busiest order among the tensors wins: usually nothing moves.
    """
    rank = max(value.rank for value in values)
    order = common_order(values)
    some_tensor_is_full = any(value.constant is None and value.rank == rank for value in values)
    return [_broadcastable(value, order, may_drop_ones=some_tensor_is_full) for value in values], order


def elementwise(function: Callable[..., Any], *values: Value) -> Value:
    """Apply a broadcasting TensorFlow function in whatever order the operands are stored."""
    if len(values) == 1 and values[0].constant is None:
        return Value.of(function(values[0].tensor), values[0].order)
    tensors, order = aligned(values)
    return Value.of(function(*tensors), order)


def common_order(values: Sequence[Value]) -> Order:
    """The order in which most elements of the full-rank tensors are stored; channels-last breaks ties."""
    rank = max(value.rank for value in values)
    weights: dict[Order, float] = {}
    for value in values:
        if value.constant is None and value.rank == rank and rank > 1:
            size = math.prod(dim or 1 for dim in value.shape)
            weights[value.order] = weights.get(value.order, 0) + size
    if not weights:
        return identity(rank)
    return max(weights, key=lambda order: (weights[order], order == channels_last(rank)))


def _broadcastable(value: Value, order: Order, *, may_drop_ones: bool) -> Any:
    """The value's tensor with axes in `order`; leading axes of size one are left out where they may be."""
    rank = len(order)
    missing = rank - value.rank
    if value.constant is not None:
        array = value.constant
        if may_drop_ones or missing:
            array = array.reshape((1,) * missing + array.shape)
        array = array.transpose(order) if array.ndim == rank else array
        while may_drop_ones and array.ndim and array.shape[0] == 1:
            array = array[0]
        return graph_constant(contiguous(array))
    if value.rank == 0:
        return value.tensor
    if not missing:
        return value.stored(order)
    wanted = [axis - missing for axis in order if axis >= missing]
    inner = value.stored(wanted)
    if order[:missing] == identity(missing):  # what is missing leads in storage too: broadcasting adds it
        return inner
    for position, axis in enumerate(order):
        if axis < missing:
            inner = tf.expand_dims(inner, position)
    return inner


def reshape(value: Value, target: Dims) -> Value:
    """ONNX Reshape to a resolved shape.

    When every group of axes that merges or splits lies together in storage, the storage itself is reshaped
    and the order is carried along; only otherwise are the axes first brought into ONNX's order.
    """
    source = value.known_dims()
    if source == target:
        return value
    plan = None if value.order == identity(value.rank) else _plan_in_storage(value.order, source, target)
    if plan is None:
        return _with_dims(Value.of(tf.reshape(value.logical(), dims_spec(target))), target)
    dims = [target[axis] for axis in plan]
    return _with_dims(Value.of(tf.reshape(value.tensor, dims_spec(dims)), plan), target)


def _with_dims(value: Value, dims: Dims) -> Value:
    value.dims = dims
    return value


def _plan_in_storage(order: Order, source: Dims, target: Dims) -> Order | None:
    """Order of the reshaped storage, or None when some group of axes is scattered in storage."""
    groups = _matching_groups(source, target)
    if groups is None:
        return None
    group_of_axis = {}
    for index, (inputs, _) in enumerate(groups):
        for axis in inputs:
            group_of_axis[axis] = index
    plan: list[int] = []
    seen: set[int] = set()
    position = 0
    moving = [axis for axis in order if not _is_one(source[axis])]
    while position < len(moving):
        index = group_of_axis[moving[position]]
        expected = [axis for axis in groups[index][0] if not _is_one(source[axis])]
        if moving[position : position + len(expected)] != expected:
            return None
        plan.extend(groups[index][1])
        seen.add(index)
        position += len(expected)
    for index, (_, outputs) in enumerate(groups):
        if index not in seen:
            plan.extend(outputs)
    return tuple(plan)


def _is_one(dim: Dim) -> bool:
    return all(size == 1 for size in dim)


def _matching_groups(source: Dims, target: Dims) -> list[tuple[list[int], list[int]]] | None:
    """Split both shapes into the smallest consecutive groups with equal products."""
    samples = len(source[0]) if source else 1
    one = (1,) * samples
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        inputs: list[int] = []
        outputs: list[int] = []
        left, right = one, one
        while True:
            if left == right and (inputs or outputs):
                break
            if (any(a < b for a, b in zip(left, right, strict=True)) or not inputs) and i < len(source):
                inputs.append(i)
                left = _times(left, source[i])
                i += 1
            elif j < len(target):
                outputs.append(j)
                right = _times(right, target[j])
                j += 1
            else:
                break
        if left != right:
            return None
        groups.append((inputs, outputs))
    return groups


def _times(left: Dim, right: Dim) -> Dim:
    return tuple(a * b for a, b in zip(left, right, strict=True))
