"""JSON values to arrays of one dtype, with TensorFlow Serving's rules and texts
(tensorflow_serving/util/json_tensor.cc).

Regular lists of numbers take a fast path made of C-speed passes over whole levels (`dense_array`); whatever it does
not recognise goes the original's element-by-element way (`Filler`), which also words every error. The fast
path therefore never decides about an error.
"""

import base64
import binascii
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isthmus.serving import json_text
from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, DTYPE_NAMES, MAX_NUM_DIMENSIONS, NUMPY_OF_DTYPE

__all__ = ["Array", "Filler", "decode_base64", "dense_array", "format_error", "invalid", "is_base64_object"]

Array = np.ndarray[Any, Any]

_DT_FLOAT, _DT_DOUBLE, _DT_INT64, _DT_BOOL, _DT_UINT32, _DT_UINT64 = 1, 2, 9, 10, 22, 23
_INT_DTYPES = {3: "int32", 5: "int16", 6: "int8", 4: "uint8"}
_INTEGER_RANGES = {
    **dict.fromkeys(_INT_DTYPES, (-(2**31), 2**31 - 1)),
    _DT_INT64: (-(2**63), 2**63 - 1),
    _DT_UINT32: (0, 2**32 - 1),
    _DT_UINT64: (0, 2**64 - 1),
}
_FLOAT_MAX = float(np.finfo(np.float32).max)
_MAX_EXACT_INT = {_DT_FLOAT: 2**24 - 1, _DT_DOUBLE: 2**53 - 1}


def is_base64_object(value: Any) -> bool:
    """Whether a JSON value is `{"b64": "<text>"}` and nothing else."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Any) -> bytes:
    """The bytes of a `{"b64": …}` object; white space, missing padding and the web-safe alphabet are errors.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    if not is_base64_object(value):
        raise invalid(f"JSON Value: {json_text.pretty(value)} not formatted correctly for base64 data")
    text: str = value["b64"]
    try:
        if text.isascii() and len(text) % 4 == 0:
            return base64.b64decode(text, validate=True)
        return _decode_loosely(text)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _decode_loosely(text: str) -> bytes:
    """absl::Base64Unescape also skips white space and takes text without its padding."""
    packed = "".join(text.split())
    stripped = packed.rstrip("=.")
    if len(packed) != len(stripped) and len(packed) % 4:
        raise ValueError("wrong padding")
    return base64.b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)


class Filler:
    """json_tensor.cc's AddInstanceItem and FillTensorProto: one element after the other, every deviation
    worded."""

    def __init__(self, dtype: int) -> None:
        self._dtype = dtype
        self._values: list[Any] = []
        self._shape: tuple[int, ...] | None = None
        self._size = 0

    def add(self, item: Any) -> None:
        """Append one item; all must have the same shape."""
        shape, size_before = _shape_of(item), len(self._values)
        self._fill(item, 0, shape)
        size = len(self._values) - size_before
        if self._shape is None:
            self._shape, self._size = shape, size
        elif size != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            raise invalid(f"Expecting shape {_shape_text(self._shape)} but got: {_shape_text(shape)}")

    def array(self, num_items: int | None) -> Array:
        """All items, stacked on a new first axis; without num_items, the only item itself."""
        assert self._shape is not None
        dtype = NUMPY_OF_DTYPE[self._dtype]
        shape = self._shape if num_items is None else (num_items, *self._shape)
        if self._dtype == DT_STRING:
            strings = np.empty(len(self._values), object)
            strings[:] = self._values
            return strings.reshape(shape)
        if self._dtype in _INT_DTYPES:
            # int_val is 32 bits wide and narrowed without a check when the tensor is made.
            return np.array(self._values, np.int32).astype(dtype).reshape(shape)
        return np.array(self._values, dtype).reshape(shape)

    def _fill(self, value: Any, level: int, shape: tuple[int, ...]) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise invalid(
                    f"JSON Value: {json_text.pretty(value)} found at incorrect level: {level + 1} in the "
                    "JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            self._values.append(self._scalar(value))
            return
        if level >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
                f"{shape[level]}"
            )
        for element in value:
            self._fill(element, level + 1, shape)

    def _scalar(self, value: Any) -> Any:
        dtype = self._dtype
        if isinstance(value, dict):
            if dtype != DT_STRING:
                raise _type_error(value, dtype)
            return decode_base64(value)
        if dtype in _MAX_EXACT_INT:
            return _float(value, dtype)
        if dtype == DT_STRING:
            if not isinstance(value, str):
                raise _type_error(value, dtype)
            return value.encode("utf-8", "surrogateescape")
        if dtype == _DT_BOOL:
            if not isinstance(value, bool):
                raise _type_error(value, dtype)
            return value
        limits = _INTEGER_RANGES.get(dtype)
        if limits is None:
            raise RequestError(
                Code.UNIMPLEMENTED,
                f"Conversion of JSON Value: {json_text.pretty(value)} to type: "
                f"{DTYPE_NAMES.get(dtype, str(dtype))}",
            )
        if isinstance(value, bool) or not isinstance(value, int) or not limits[0] <= value <= limits[1]:
            raise _type_error(value, dtype)
        return value


def _float(value: Any, dtype: int) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _type_error(value, dtype)
    is_exact = (
        abs(value) <= _MAX_EXACT_INT[dtype]
        if isinstance(value, int)
        else dtype == _DT_DOUBLE or not math.isfinite(value) or abs(value) <= _FLOAT_MAX
    )
    if not is_exact:
        raise invalid(
            f"Cannot convert JSON value: {json_text.pretty(value)} to {DTYPE_NAMES[dtype]} without loss of "
            "precision."
        )
    return value


def dense_array(value: list[Any], dtype: int) -> Array | None:
    """The array of a regular nested list whose every leaf is plainly of the dtype; None when in any doubt."""
    shape: list[int] = []
    leaves = value
    while len(shape) < MAX_NUM_DIMENSIONS:
        shape.append(len(leaves) if not shape else len(leaves) // math.prod(shape))
        kinds = set(map(type, leaves))
        if kinds != {list}:
            break
        sizes = set(map(len, leaves))
        if len(sizes) != 1 or not next(iter(sizes)):
            return None
        leaves = list(itertools.chain.from_iterable(leaves))
    else:
        return None
    flat = _dense_leaves(leaves, kinds, dtype)
    return None if flat is None else flat.reshape(shape)


def _dense_leaves(leaves: Sequence[Any], kinds: set[type], dtype: int) -> Array | None:
    if dtype in (_DT_FLOAT, _DT_DOUBLE) and kinds <= {float, int}:
        values = np.array(leaves, np.float64)
        limit = _FLOAT_MAX if dtype == _DT_FLOAT else math.inf
        if int in kinds:
            limit = min(limit, _MAX_EXACT_INT[dtype])
        # NaN compares false and takes the careful way, as everything else that is not plainly in range.
        return values.astype(NUMPY_OF_DTYPE[dtype]) if bool((np.abs(values) <= limit).all()) else None
    if dtype in _INTEGER_RANGES and kinds == {int}:
        low, high = _INTEGER_RANGES[dtype]
        if low <= min(leaves) and max(leaves) <= high:
            width = np.int32 if dtype in _INT_DTYPES else NUMPY_OF_DTYPE[dtype]
            return np.array(leaves, width).astype(NUMPY_OF_DTYPE[dtype])
        return None
    if dtype == _DT_BOOL and kinds == {bool}:
        return np.array(leaves, np.bool_)
    if dtype == DT_STRING and kinds == {str}:
        strings = np.empty(len(leaves), object)
        strings[:] = [leaf.encode("utf-8", "surrogateescape") for leaf in leaves]
        return strings
    return None


def _shape_of(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) >= MAX_NUM_DIMENSIONS:
            raise invalid(f"a tensor of {MAX_NUM_DIMENSIONS} or more dimensions is not supported")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)


def format_error(value: Any, text: str) -> RequestError:
    return invalid(f"JSON Value: {json_text.pretty(value)} {text}")


def _type_error(value: Any, dtype: int) -> RequestError:
    return invalid(
        f"JSON Value: {json_text.pretty(value)} Type: {json_text.type_name(value)} "
        f"is not of expected type: {DTYPE_NAMES.get(dtype, str(dtype))}"
    )
