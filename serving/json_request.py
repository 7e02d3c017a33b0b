"""A REST predict body to arrays, with TensorFlow Serving's rules and texts
(tensorflow_serving/util/json_tensor.cc).

Regular lists of numbers take a fast path made of C-speed passes over whole levels (`_dense`); whatever it
does not recognise goes the original's element-by-element way (`_Filler`), which also words every error. The
fast path therefore never decides about an error.
"""

import base64
import binascii
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.serving import json_text
from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, DTYPE_NAMES, MAX_NUM_DIMENSIONS, NUMPY_OF_DTYPE

__all__ = [
    "PredictBody",
    "decode_base64",
    "is_base64_object",
    "json_object",
    "parse_predict",
    "signature_name",
]

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


@dataclass(frozen=True)
class PredictBody:
    """A parsed REST predict request."""

    signature_name: str
    inputs: dict[str, Array]
    row_format: bool
    """True for `instances` (answered as `predictions`), False for `inputs` (answered as `outputs`)."""


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body.

    Raises:
        RequestError: INVALID_ARGUMENT `JSON Parse error: …` or `JSON Value: … Is not object`.
    """
    document = json_text.parse(body)
    if not isinstance(document, dict):
        raise _format_error(document, "Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The optional `signature_name` of a body; "" when it is not there."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid(
            f"JSON Value: {json_text.pretty(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def parse_predict(body: bytes, infos_of: Callable[[str], Mapping[str, Any]]) -> PredictBody:
    """Parse a predict body.

    Args:
        body: the JSON text.
        infos_of: TensorInfo by input alias of a signature ("" for the default one); may raise RequestError.

    Raises:
        RequestError: INVALID_ARGUMENT, or UNIMPLEMENTED for a tensor type that JSON cannot carry.
    """
    document = json_object(body)
    signature = signature_name(document)
    dtypes = {alias: info.dtype for alias, info in infos_of(signature).items()}
    if not dtypes:
        raise _invalid(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise _format_error(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _format_error(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _format_error(document, "No values in 'instances' array")
        return PredictBody(signature, _from_instances(instances, dtypes), row_format=True)
    if "inputs" in document:
        return PredictBody(signature, _from_inputs(document["inputs"], dtypes), row_format=False)
    raise _invalid("Missing 'inputs' or 'instances' key")


def is_base64_object(value: Any) -> bool:
    """Whether a JSON value is `{"b64": "<text>"}` and nothing else."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Any) -> bytes:
    """The bytes of a `{"b64": …}` object; white space, missing padding and the web-safe alphabet are errors.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    if not is_base64_object(value):
        raise _invalid(f"JSON Value: {json_text.pretty(value)} not formatted correctly for base64 data")
    text: str = value["b64"]
    try:
        if text.isascii() and len(text) % 4 == 0:
            return base64.b64decode(text, validate=True)
        return _decode_loosely(text)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def _decode_loosely(text: str) -> bytes:
    """absl::Base64Unescape also skips white space and takes text without its padding."""
    packed = "".join(text.split())
    stripped = packed.rstrip("=.")
    if len(packed) != len(stripped) and len(packed) % 4:
        raise ValueError("wrong padding")
    return base64.b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)


def _from_instances(instances: list[Any], dtypes: Mapping[str, int]) -> dict[str, Array]:
    first = instances[0]
    if not isinstance(first, dict) and len(dtypes) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    if _is_named(first):
        return _from_named_instances(instances, dtypes)
    name, dtype = next(iter(dtypes.items()))
    values = _dense(instances, dtype)
    return {name: values if values is not None else _from_plain_instances(instances, dtype)}


def _from_plain_instances(instances: list[Any], dtype: int) -> Array:
    filler = _Filler(dtype)
    for index, element in enumerate(instances):
        if _is_named(element):
            raise _invalid(f"Expecting value/list but got object at item {index} of input list")
        try:
            filler.add(element)
        except RequestError as error:
            raise _invalid(
                f"Failed to process element: {index} of 'instances' list. Error: {error}"
            ) from error
    return filler.array(len(instances))


def _from_named_instances(instances: list[Any], dtypes: Mapping[str, int]) -> dict[str, Array]:
    names = dtypes.keys()
    if all(_is_named(element) and element.keys() == names for element in instances):
        columns = {
            name: _dense([element[name] for element in instances], dtypes[name]) for name in sorted(names)
        }
        dense = {name: column for name, column in columns.items() if column is not None}
        if len(dense) == len(columns):
            return dense
    fillers = {name: _Filler(dtype) for name, dtype in dtypes.items()}
    for index, element in enumerate(instances):
        if not _is_named(element):
            raise _invalid(f"Expecting object but got list at item {index} of input list")
        for name, value in element.items():
            try:
                if name not in fillers:
                    raise _invalid(f"JSON object: does not have named input: {name}")
                fillers[name].add(value)
            except RequestError as error:
                raise _invalid(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: {error}"
                ) from error
        if element.keys() != names:
            raise _invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{json_text.pretty(element)} "
                f"keys must be equal to: {','.join(sorted(names))}"
            )
    return {name: fillers[name].array(len(instances)) for name in names}


def _from_inputs(value: Any, dtypes: Mapping[str, int]) -> dict[str, Array]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        name, dtype = next(iter(dtypes.items()))
        return {name: _column(value, dtype)}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _column(value[name], dtype)
    return arrays


def _column(value: Any, dtype: int) -> Array:
    values = _dense(value, dtype) if isinstance(value, list) and value else None
    if values is not None:
        return values
    filler = _Filler(dtype)
    filler.add(value)
    return filler.array(None)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64_object(value)


class _Filler:
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
            raise _invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            raise _invalid(f"Expecting shape {_shape_text(self._shape)} but got: {_shape_text(shape)}")

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
                raise _invalid(
                    f"JSON Value: {json_text.pretty(value)} found at incorrect level: {level + 1} in the "
                    "JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            self._values.append(self._scalar(value))
            return
        if level >= len(shape):
            raise _invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise _invalid(
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
            return value.encode("utf-8", "surrogatepass")
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
        raise _invalid(
            f"Cannot convert JSON value: {json_text.pretty(value)} to {DTYPE_NAMES[dtype]} without loss of "
            "precision."
        )
    return value


def _dense(value: list[Any], dtype: int) -> Array | None:
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
        strings[:] = [leaf.encode("utf-8", "surrogatepass") for leaf in leaves]
        return strings
    return None


def _shape_of(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) >= MAX_NUM_DIMENSIONS:
            raise _invalid(f"a tensor of {MAX_NUM_DIMENSIONS} or more dimensions is not supported")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)


def _format_error(value: Any, text: str) -> RequestError:
    return _invalid(f"JSON Value: {json_text.pretty(value)} {text}")


def _type_error(value: Any, dtype: int) -> RequestError:
    return _invalid(
        f"JSON Value: {json_text.pretty(value)} Type: {json_text.type_name(value)} "
        f"is not of expected type: {DTYPE_NAMES.get(dtype, str(dtype))}"
    )
