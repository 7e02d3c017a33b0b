"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.activations import gelu, hard_sigmoid, hard_swish, silu_of_few
from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.registry import constant_input, internal, op
from isthmus.export.tf_half.direct.values import Value, channels_last, graph_constant, identity

ACTIVATIONS = {
    "Gelu": gelu,
    "GeluTanh": lambda x: gelu(x, "tanh"),
    "Relu": tf.nn.relu,
    "Silu": silu_of_few,
    "Sigmoid": tf.sigmoid,
    "HardSwish": hard_swish,
    "HardSigmoid": hard_sigmoid,
}


@internal("Linear")
def linear(node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """x [..., K] @ w [K, M] + b [M], then an optional activation: one rank-2 MatMul that oneDNN can fuse.

    Only the contracted axis has to be last in storage; the others stay as they are.
    """
    weight = constant_input(node, w, "weight")
    last = x.rank - 1
    order = x.order if x.order[-1] == last else (*[axis for axis in x.order if axis != last], last)
    tensor = x.stored(order)
    lead = tensor.shape[:-1]
    flat = tensor if x.rank == 2 else tf.reshape(tensor, [-1, weight.shape[0]])
    result = _product(node, flat, weight, b)
    if x.rank != 2:
        result = tf.reshape(result, _lead_spec(tensor, lead, weight.shape[1]))
    return Value.of(result, order)


@internal("PointLinear")
def point_linear(node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """x [N, K, 1, …] as a linear layer of rank 2, and back to [N, M, 1, …]."""
    weight = constant_input(node, w, "weight")
    # With one axis longer than 1 beside the batch, the order in storage is of no matter unless the batch is last.
    order = x.order if x.order[0] == 0 else channels_last(x.rank)
    result = _product(node, tf.reshape(x.stored(order), [-1, weight.shape[0]]), weight, b)
    order = channels_last(x.rank)
    return Value.of(tf.reshape(result, [-1, *[1] * (x.rank - 2), weight.shape[1]]), order)


def _product(node: Node, flat: Any, weight: np.ndarray, bias: Value | None) -> Any:
    """flat [rows, K] @ weight [K, M], plus bias [M], through the activation that the node names."""
    result = tf.matmul(flat, graph_constant(weight))
    if bias is not None:
        result = tf.nn.bias_add(result, graph_constant(constant_input(node, bias, "bias")))
    if node.attrs.get("activation"):
        result = ACTIVATIONS[node.attrs["activation"]](result, *node.attrs.get("parameters", ()))
    return result


def _lead_spec(tensor: Any, lead: Any, features: int) -> Any:
    sizes = lead.as_list()
    if sizes.count(None) <= 1:
        return [*[-1 if size is None else size for size in sizes], features]
    return tf.concat([tf.shape(tensor)[:-1], [features]], 0)


def _matrix(x: Value) -> tuple[Any, bool]:
    """(tensor, whether its last two axes are swapped): batch axes in ONNX's order, no copy when avoidable."""
    swapped = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    if x.constant is None and x.order == swapped:
        return x.tensor, True
    return x.logical(), False


@op("MatMul")
def mat_mul(_: Node, a: Value, b: Value) -> Value:
    """numpy.matmul."""
    if a.rank == 1 or b.rank == 1:
        return Value.of(_with_vectors(a.logical(), b.logical()))
    if b.rank == 2 and a.rank > 2 and a.constant is None and b.constant is None:
        left = a.logical()
        flat = tf.matmul(tf.reshape(left, [-1, left.shape[-1]]), b.logical())
        return Value.of(tf.reshape(flat, _lead_spec(left, left.shape[:-1], flat.shape[-1])))
    left, swap_left = _matrix(a)
    right, swap_right = _matrix(b)
    return Value.of(tf.matmul(left, right, transpose_a=swap_left, transpose_b=swap_right))


def _with_vectors(a: Any, b: Any) -> Any:
    row, column = a.shape.rank == 1, b.shape.rank == 1
    product = tf.matmul(a[None] if row else a, b[:, None] if column else b)
    if column:
        product = tf.squeeze(product, [-1])
    if row:
        product = tf.squeeze(product, [-1 if column else -2])
    return product


@op("Gemm", since=7)
def gemm(node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    """alpha * op(a) @ op(b) + beta * c."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    product = tf.matmul(
        a.logical(),
        b.logical(),
        transpose_a=bool(node.attrs.get("transA", 0)),
        transpose_b=bool(node.attrs.get("transB", 0)),
    )
    if alpha != 1:
        product = product * tf.cast(alpha, product.dtype)
    if c is None:
        return Value.of(product)
    bias = c.logical()
    if beta != 1:
        bias = bias * tf.cast(beta, bias.dtype)
    width = product.shape[1]
    if bias.shape in ([width], [1, width]) and product.dtype.is_floating:
        # Not as [1, M]: grappler fuses that into a MatMul with transpose_a that then refuses it.
        return Value.of(tf.nn.bias_add(product, tf.reshape(bias, [width])))
    return Value.of(product + bias)


@op("Einsum", since=12)
def einsum(node: Node, *inputs: Value) -> Value:
    """Einstein summation."""
    return Value.of(
        tf.einsum(node.attrs["equation"].replace(" ", ""), *[value.logical() for value in inputs])
    )


@op("Det")
def determinant(_: Node, x: Value) -> Value:
    """Of the last two axes."""
    return Value.of(tf.linalg.det(x.logical()))


@op("Attention", since=23)
def attention(
    node: Node, q: Value, k: Value, v: Value, mask: Value | None = None, *more: Value | None
) -> Value:
    """Scaled dot-product attention on [N, heads, T, D]; no cache, no causal flag, no soft cap."""
    if any(value is not None for value in more) or any(node.outputs[1:]) or q.rank != 4:
        raise node.unsupported("only the 4-D form without a cache or extra outputs")
    if any(value for name, value in node.attrs.items() if name != "scale"):
        raise node.unsupported("attributes other than scale")
    if q.shape[1] != k.shape[1]:
        raise node.unsupported("grouped heads")
    scale = node.attrs.get("scale") or 1 / math.sqrt(q.shape[-1] or 1)
    scores = tf.matmul(q.logical() * np.float32(scale), k.logical(), transpose_b=True)
    if mask is not None:
        offsets = mask if mask.dtype != tf.bool else elementwise(_mask_offsets, mask)
        scores = scores + offsets.logical()
    return Value.of(tf.matmul(tf.nn.softmax(scores), v.logical()), identity(4))


def _mask_offsets(mask: Any) -> Any:
    return tf.where(mask, np.float32(0), np.float32(-np.inf))
