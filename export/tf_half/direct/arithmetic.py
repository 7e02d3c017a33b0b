"""Element by element: arithmetic, comparison, logic, casts, and the two operators around a QDQ model's floats.

QuantizeLinear and DequantizeLinear: integer weights are dequantised while converting, as everything is that is given
constants. Between the two an activation really has 8 or 16 bits: ONNX Runtime's answer, rounding and saturation
included, as long as it too takes the file by its word. Its optimisers make products of integers of the operators in
between; those accumulate exactly, and a value on the edge of two levels may then come out one level apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.registry import Handler, constant_input, op
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


_QUANTISED = ("int8", "uint8", "int16", "uint16")


@op("QuantizeLinear", since=10)
def quantize_linear(node: Node, x: Value, scale: Value, zero_point: Value | None = None) -> Value:
    """saturate(round(x / scale) + zero_point), halves to even; one scale, or one for each place of `axis`."""
    scales, zeros = _parameters(node, x, scale, zero_point)
    dtype = _result_type(node, zeros)
    limits = np.iinfo(dtype)
    zeros = np.zeros((), np.float32) if zeros is None else zeros.astype(np.float32)
    if x.dtype != tf.float32:
        raise node.unsupported(f"its input is {x.dtype.name}; lowered from float32")
    steps = elementwise(lambda tensor, step: tf.round(tensor / step), x, Value.const(scales))
    moved = elementwise(tf.add, steps, Value.const(zeros)) if zeros.any() else steps
    return elementwise(
        lambda tensor: tf.cast(
            tf.clip_by_value(tensor, np.float32(limits.min), np.float32(limits.max)), dtype
        ),
        moved,
    )


@op("DequantizeLinear", since=10)
def dequantize_linear(node: Node, x: Value, scale: Value, zero_point: Value | None = None) -> Value:
    """(x - zero_point) * scale in float32."""
    scales, zeros = _parameters(node, x, scale, zero_point)
    if x.dtype.name not in (*_QUANTISED, "int32"):
        raise node.unsupported(f"its input is {x.dtype.name}; lowered from {', '.join(_QUANTISED)} and int32")
    # Differences of 16 bits fit into int32, and those of a bias, which int32 is for, have no zero point.
    steps = elementwise(lambda tensor: tf.cast(tensor, tf.int32), x)
    if zeros is not None and zeros.any():
        steps = elementwise(tf.subtract, steps, Value.const(zeros.astype(np.int32)))
    return elementwise(lambda tensor, step: tf.cast(tensor, tf.float32) * step, steps, Value.const(scales))


def _parameters(
    node: Node, x: Value, scale: Value, zero_point: Value | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point as they broadcast against x."""
    scales = constant_input(node, scale, "scale")
    zeros = None if zero_point is None else constant_input(node, zero_point, "zero point")
    if node.attrs.get("block_size", 0):
        raise node.unsupported("block_size: one scale for each block of an axis")
    if scales.dtype != np.float32:
        raise node.unsupported(f"its scale is {scales.dtype}; lowered with float32")
    if zeros is not None and zeros.size != scales.size:
        raise node.unsupported(f"{scales.size} scales and {zeros.size} zero points")
    if scales.size == 1:
        return scales.reshape(()), None if zeros is None else zeros.reshape(())
    axis = node.attrs.get("axis", 1) % x.rank
    if scales.ndim != 1 or x.shape[axis] != scales.size:
        raise node.unsupported(f"scales of shape {scales.shape} for axis {axis} of {x.shape}")
    shape = (-1, *(1,) * (x.rank - 1 - axis))
    return scales.reshape(shape), None if zeros is None else zeros.reshape(shape)


def _result_type(node: Node, zeros: np.ndarray | None) -> np.dtype:
    """The element type of QuantizeLinear's output: the zero point's, else the attribute's, else uint8."""
    import onnx

    dtype = np.dtype(np.uint8)
    if zeros is not None:
        dtype = zeros.dtype
    elif node.attrs.get("output_dtype", 0):
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["output_dtype"]))
    if dtype.name not in _QUANTISED:
        raise node.unsupported(f"it gives {dtype.name}; lowered to {', '.join(_QUANTISED)}")
    return dtype
