"""Activation functions and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.registry import choice, internal, op
from isthmus.export.tf_half.direct.values import Value


def _register(op_type: str, function: Callable[..., Any], defaults: dict[str, float] | None = None) -> None:
    def handler(node: Node, x: Value) -> Value:
        parameters = {name: node.attrs.get(name, default) for name, default in (defaults or {}).items()}
        return elementwise(lambda tensor: function(tensor, **parameters), x)

    op(op_type)(handler)


def hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    """max(0, min(1, alpha x + beta)); the common alpha = 1/6 runs on Relu6."""
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return tf.nn.relu6(x + 3.0) * np.float32(1 / 6)
    return tf.clip_by_value(x * np.float32(alpha) + np.float32(beta), 0.0, 1.0)


def hard_swish(x: Any) -> Any:
    """x * hard_sigmoid(x), written as TensorFlow's remapper knows it."""
    return x * (tf.nn.relu6(x + 3.0) * np.float32(1 / 6))


def silu(x: Any) -> Any:
    """x * sigmoid(x), which TensorFlow's remapper fuses."""
    return x * tf.sigmoid(x)


def silu_of_few(x: Any) -> Any:
    """The same for a handful of numbers, in a form that is not fused: the fused kernel wakes all threads."""
    return x / (np.float32(1) + tf.exp(-x))


def gelu(x: Any, approximate: str = "none") -> Any:
    """Exact (erf) or tanh-approximated GELU, written as TensorFlow's remapper knows it."""
    if approximate == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * tf.pow(x, np.float32(3)))
        return np.float32(0.5) * x * (np.float32(1) + tf.tanh(inner))
    half = np.float32(0.5) * x
    return half * (np.float32(1) + tf.math.erf(x * np.float32(math.sqrt(0.5))))


def selu(x: Any, alpha: float, gamma: float) -> Any:
    """gamma * (x if x > 0 else alpha * (exp(x) - 1))."""
    return np.float32(gamma) * tf.where(x > 0, x, np.float32(alpha) * tf.math.expm1(x))


_register("Relu", tf.nn.relu)
_register("Sigmoid", tf.sigmoid)
_register("Softplus", tf.math.softplus)
_register("Softsign", tf.math.softsign)
_register("Mish", lambda x: x * tf.tanh(tf.math.softplus(x)))
_register("HardSwish", hard_swish)
internal("HardSwish")(lambda _, x: elementwise(hard_swish, x))
internal("Silu")(lambda _, x: elementwise(silu, x))
_register("HardSigmoid", hard_sigmoid, {"alpha": 0.2, "beta": 0.5})
_register("LeakyRelu", tf.nn.leaky_relu, {"alpha": 0.01})
_register("Elu", lambda x, alpha: tf.where(x > 0, x, alpha * tf.math.expm1(x)), {"alpha": 1.0})
_register(
    "Celu",
    lambda x, alpha: tf.maximum(x, 0.0) + tf.minimum(alpha * tf.math.expm1(x / alpha), 0.0),
    {"alpha": 1.0},
)
_register("Selu", selu, {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805})
_register("ThresholdedRelu", lambda x, alpha: tf.where(x > alpha, x, tf.zeros_like(x)), {"alpha": 1.0})
_register("Swish", lambda x, alpha: x * tf.sigmoid(np.float32(alpha) * x), {"alpha": 1.0})


@op("Shrink", since=9)
def shrink(node: Node, x: Value) -> Value:
    """Soft (bias) or hard (bias 0) shrinkage around zero."""
    bias, threshold = node.attrs.get("bias", 0.0), node.attrs.get("lambd", 0.5)

    def apply(tensor: Any) -> Any:
        zero = tf.zeros_like(tensor)
        return tf.where(tensor < -threshold, tensor + bias, tf.where(tensor > threshold, tensor - bias, zero))

    return elementwise(apply, x)


@op("PRelu", since=7)
def prelu(_: Node, x: Value, slope: Value) -> Value:
    """x if x >= 0 else slope * x, the slope broadcast."""
    return elementwise(lambda a, b: tf.nn.relu(a) + b * tf.minimum(a, 0.0), x, slope)


@op("Gelu", since=20)
@internal("Gelu")
def gelu_operator(node: Node, x: Value) -> Value:
    """GELU; approximate is none or tanh."""
    approximate = choice(node, "approximate", ("none", "tanh"), "none")
    return elementwise(lambda tensor: gelu(tensor, approximate), x)


def _along_last(x: Value, axis: int, function: Callable[[Any], Any]) -> Value:
    """Apply a function of the last storage axis to a logical axis."""
    axis %= x.rank
    order = x.order if x.order[-1] == axis else (*[other for other in x.order if other != axis], axis)
    return Value.of(function(x.stored(order)), order)


@op("Softmax", since=13)
def softmax(node: Node, x: Value) -> Value:
    """Along one axis."""
    return _along_last(x, node.attrs.get("axis", -1), tf.nn.softmax)


@op("LogSoftmax", since=13)
def log_softmax(node: Node, x: Value) -> Value:
    """Along one axis."""
    return _along_last(x, node.attrs.get("axis", -1), tf.nn.log_softmax)


def _flattened(x: Value, axis: int, function: Callable[[Any], Any]) -> Value:
    """Before opset 13: everything from the axis on is one distribution."""
    tensor = x.logical()
    axis %= max(x.rank, 1)
    if axis == x.rank - 1:
        return Value.of(function(tensor))
    shape = tf.shape(tensor)
    flat = tf.reshape(tensor, tf.concat([shape[:axis], [-1]], 0))
    return Value.of(tf.ensure_shape(tf.reshape(function(flat), shape), tensor.shape))


@op("Softmax", since=1)
def softmax_1(node: Node, x: Value) -> Value:
    """See _flattened."""
    return _flattened(x, node.attrs.get("axis", 1), tf.nn.softmax)


@op("LogSoftmax", since=1)
def log_softmax_1(node: Node, x: Value) -> Value:
    """See _flattened."""
    return _flattened(x, node.attrs.get("axis", 1), tf.nn.log_softmax)


@op("Hardmax", since=13)
def hardmax(node: Node, x: Value) -> Value:
    """One at the first maximum along an axis, zero elsewhere."""

    def apply(tensor: Any) -> Any:
        return tf.one_hot(tf.argmax(tensor, axis=-1), tensor.shape[-1], dtype=tensor.dtype)

    return _along_last(x, node.attrs.get("axis", -1), apply)
