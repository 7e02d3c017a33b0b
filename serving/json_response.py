"""Tensors to the REST API's JSON, character by character what TensorFlow Serving writes (json_tensor.cc).

RapidJSON's PrettyWriter is switched between one line and many in a way that gives the original its known
shape:

    {
        "predictions": [2.5, 3.0
        ]
    }
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from isthmus.serving import json_text
from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, DTYPE_NAMES, dtype_number

__all__ = ["error_body", "predictions"]

Array = np.ndarray[Any, Any]

_INTEGERS_AND_BOOL = {3, 4, 5, 6, 9, 10, 22, 23}
_FLOATS = {1, 2}


def error_body(message: str) -> bytes:
    """The body of every error answer."""
    return f'{{\n    "error": {json_text.quoted(message)}\n}}'.encode("utf-8", "surrogateescape")


def predictions(outputs: Mapping[str, Array], *, row_format: bool) -> bytes:
    """The body of a predict answer.

    Args:
        outputs: arrays by output alias.
        row_format: `predictions`, one element per row; otherwise `outputs`, one tensor per alias.

    Raises:
        RequestError: INVALID_ARGUMENT for outputs that have no such form.
    """
    if not outputs:
        raise RequestError(Code.INVALID_ARGUMENT, "Cannot convert empty tensor map to JSON")
    text = _rows(outputs) if row_format else _columns(outputs)
    return text.encode("utf-8", "surrogateescape")


def _rows(outputs: Mapping[str, Array]) -> str:
    batch_size = _batch_size(outputs)
    leaves = {name: _leaves(name, array) for name, array in outputs.items()}
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        body = ", ".join(_elements(leaves[name], array.shape, one_line=True))
        return f'{{\n    "predictions": [{body}\n    ]\n}}'
    columns = {
        f"            {json_text.quoted(name)}: ": _elements(leaves[name], array.shape, one_line=True)
        for name, array in outputs.items()
    }
    rows = (
        "        {\n" + ",\n".join(key + values[row] for key, values in columns.items()) + "\n        }"
        for row in range(batch_size)
    )
    return '{\n    "predictions": [\n' + ",\n".join(rows) + "\n    ]\n}"


def _columns(outputs: Mapping[str, Array]) -> str:
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return f'{{\n    "outputs": {_nested(_leaves(name, array), array.shape, depth=1)}\n}}'
    members = (
        f"        {json_text.quoted(name)}: {_nested(_leaves(name, array), array.shape, depth=2)}"
        for name, array in outputs.items()
    )
    return '{\n    "outputs": {\n' + ",\n".join(members) + "\n    }\n}"


def _batch_size(outputs: Mapping[str, Array]) -> int:
    batch_size = 0
    for name, array in outputs.items():
        if not array.ndim:
            raise RequestError(Code.INVALID_ARGUMENT, f"Tensor name: {name} has no shape information ")
        if array.shape[0] < 1:
            raise RequestError(
                Code.INVALID_ARGUMENT, f"Tensor name: {name} has invalid batch size: {array.shape[0]}"
            )
        if batch_size and array.shape[0] != batch_size:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {batch_size}",
            )
        batch_size = array.shape[0]
    return batch_size


def _leaves(name: str, array: Array) -> list[str]:
    """The JSON text of every element, in order."""
    number = dtype_number(array)
    flat = array.reshape(-1)
    if number in _FLOATS:
        return json_text.decimals(flat)
    if number in _INTEGERS_AND_BOOL:
        return (
            list(map(str, flat.tolist()))
            if number != 10
            else ["true" if v else "false" for v in flat.tolist()]
        )
    if number == DT_STRING:
        values = [v if isinstance(v, bytes) else str(v).encode() for v in flat.tolist()]
        if name.endswith("_bytes"):
            return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in values]
        return [json_text.quoted(value.decode("utf-8", "surrogateescape")) for value in values]
    raise RequestError(
        Code.INVALID_ARGUMENT,
        f"Failed to write JSON value for tensor type: {DTYPE_NAMES.get(number, number)}",
    )


def _elements(leaves: list[str], shape: tuple[int, ...], *, one_line: bool) -> list[str]:
    """The elements along the first axis, each on one line."""
    assert one_line
    texts = leaves
    for size in reversed(shape[1:]):
        if not size:
            return ["[" * 1 + "]"] * shape[0]
        texts = [f"[{', '.join(texts[start : start + size])}]" for start in range(0, len(texts), size)]
    return texts


def _nested(leaves: list[str], shape: tuple[int, ...], *, depth: int) -> str:
    """A whole tensor, one element a line."""
    texts = leaves
    for axis in range(len(shape) - 1, -1, -1):
        inner, outer = "    " * (depth + axis + 1), "    " * (depth + axis)
        size = shape[axis]
        if not size:
            count = int(np.prod(shape[:axis]))
            texts = ["[]"] * count
            continue
        texts = [
            "[\n" + ",\n".join(inner + text for text in texts[start : start + size]) + f"\n{outer}]"
            for start in range(0, len(texts), size)
        ]
    return texts[0]
