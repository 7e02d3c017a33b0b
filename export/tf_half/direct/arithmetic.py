"""Element by element: arithmetic, comparison, logic, casts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.registry import Handler, op
from isthmus.export.tf_half.direct.values import Value


def _register(op_type: str, function: Callable[..., Any], since: int = 1) -> None:
    def handler(_: Node, *inputs: Value) -> Value:
        return elementwise(function, *inputs)

    op(op_type, since=since)(handler)


def _is_signed_integer(tensor: Any) -> bool:
    return bool(tensor.dtype.is_integer)


def _divide(a: Any, b: Any) -> Any:
    """ONNX truncates integer quotients towards zero, as C does."""
    return tf.raw_ops.TruncateDiv(x=a, y=b) if _is_signed_integer(a) else tf.raw_ops.RealDiv(x=a, y=b)


def _power(a: Any, b: Any) -> Any:
    """The result has the base's type. Squares and roots, which norms are made of, get their own kernels."""
    exponent = tf.get_static_value(b)
    if exponent is not None and exponent.ndim == 0 and a.dtype.is_floating:
        if exponent == 2:
            return tf.square(a)
        if exponent == 0.5:
            return tf.sqrt(a)
    if a.dtype.is_floating or not b.dtype.is_floating:
        return tf.pow(a, tf.cast(b, a.dtype))
    return tf.cast(tf.pow(tf.cast(a, b.dtype), b), a.dtype)


UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": tf.abs,
    "Acos": tf.acos,
    "Acosh": tf.acosh,
    "Asin": tf.asin,
    "Asinh": tf.asinh,
    "Atan": tf.atan,
    "Atanh": tf.atanh,
    "BitwiseNot": tf.bitwise.invert,
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": tf.cosh,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Floor": tf.math.floor,
    "Identity": lambda x: x,
    "IsNaN": tf.math.is_nan,
    "Log": tf.math.log,
    "Neg": tf.negative,
    "Not": tf.logical_not,
    "Reciprocal": tf.math.reciprocal,
    "Round": tf.round,
    "Sign": tf.sign,
    "Sin": tf.sin,
    "Sinh": tf.sinh,
    "Sqrt": tf.sqrt,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
}
for _name, _function in UNARY.items():
    _register(_name, _function)

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: tf.raw_ops.AddV2(x=a, y=b),
    "And": tf.logical_and,
    "BitwiseAnd": tf.bitwise.bitwise_and,
    "BitwiseOr": tf.bitwise.bitwise_or,
    "BitwiseXor": tf.bitwise.bitwise_xor,
    "Div": _divide,
    "Equal": tf.equal,
    "Greater": tf.greater,
    "GreaterOrEqual": tf.greater_equal,
    "Less": tf.less,
    "LessOrEqual": tf.less_equal,
    "Mul": tf.multiply,
    "Or": tf.logical_or,
    "Pow": _power,
    "Sub": tf.subtract,
    "Xor": tf.math.logical_xor,
}
for _name, _binary in _BINARY.items():
    # Before opset 7 broadcasting was an attribute; no exporter of the last years writes that.
    _register(_name, _binary, since=7)


def _variadic(function: Callable[[Any, Any], Any]) -> Handler:
    def handler(_: Node, *inputs: Value) -> Value:
        return functools.reduce(functools.partial(elementwise, function), inputs)

    return handler


op("Max")(_variadic(tf.maximum))
op("Min")(_variadic(tf.minimum))
op("Sum")(_variadic(_BINARY["Add"]))


@op("Mean")
def mean(_: Node, *inputs: Value) -> Value:
    """Element-wise mean of any number of inputs."""
    total = functools.reduce(functools.partial(elementwise, _BINARY["Add"]), inputs)
    return elementwise(lambda x: x / tf.cast(len(inputs), x.dtype), total)


@op("Where", since=9)
def where(_: Node, condition: Value, x: Value, y: Value) -> Value:
    """x where the condition holds, else y, all three broadcast."""
    return elementwise(tf.where, condition, x, y)


@op("Mod", since=10)
def mod(node: Node, a: Value, b: Value) -> Value:
    """fmod=1 takes the dividend's sign (C), fmod=0 the divisor's (Python; integers only)."""
    if node.attrs.get("fmod", 0):
        return elementwise(lambda x, y: tf.raw_ops.TruncateMod(x=x, y=y), a, b)
    return elementwise(tf.math.floormod, a, b)


@op("IsInf", since=10)
def is_inf(node: Node, x: Value) -> Value:
    """Infinities, optionally of one sign only."""
    positive, negative = node.attrs.get("detect_positive", 1), node.attrs.get("detect_negative", 1)

    def detect(tensor: Any) -> Any:
        found = tf.math.is_inf(tensor)
        if not positive:
            found = tf.logical_and(found, tensor < 0)
        if not negative:
            found = tf.logical_and(found, tensor > 0)
        return found

    return elementwise(detect, x)


_CASTABLE = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)


@op("Cast", since=6)
def cast(node: Node, x: Value) -> Value:
    """Change the element type; floats are truncated towards zero."""
    import onnx

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    return _cast(node, x, dtype)


@op("CastLike", since=15)
def cast_like(node: Node, x: Value, like: Value) -> Value:
    """Change the element type to another value's."""
    return _cast(node, x, like.dtype.as_numpy_dtype)


def _cast(node: Node, x: Value, dtype: Any) -> Value:
    if np.dtype(dtype).name not in _CASTABLE:
        raise node.unsupported(f"element type {np.dtype(dtype).name}; allowed: {', '.join(_CASTABLE)}")
    wanted = tf.as_dtype(dtype)
    if x.dtype == wanted:
        return x
    return elementwise(lambda tensor: tf.cast(tensor, wanted), x)


@op("Clip", since=11)
def clip(_: Node, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    """Limit to [low, high]; either bound may be absent."""
    return _clip(x, low, high)


@op("Clip", since=6)
def clip_6(node: Node, x: Value) -> Value:
    """Before opset 11 the bounds were attributes."""
    bounds = [node.attrs.get(name) for name in ("min", "max")]
    low, high = (None if bound is None else Value.const(np.float32(bound)) for bound in bounds)
    return _clip(x, low, high)


def _clip(x: Value, low: Value | None, high: Value | None) -> Value:
    if low is not None and high is not None and low.constant is not None and high.constant is not None:
        if x.dtype == tf.float32 and low.constant == 0 and high.constant == 6:
            return elementwise(tf.nn.relu6, x)
        if x.dtype == tf.float32 and low.constant == 0 and np.isposinf(high.constant):
            return elementwise(tf.nn.relu, x)
    if low is not None:
        x = elementwise(tf.maximum, x, low)
    if high is not None:
        x = elementwise(tf.minimum, x, high)
    return x
