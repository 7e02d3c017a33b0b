"""REST classify and regress bodies to tensorflow.serving.Input, and their results to JSON
(json_tensor.cc)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import input_pb2

from isthmus.serving import json_request, json_text, json_values
from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = ["classifications", "parse_examples", "regressions"]

_FLOAT_MAX = float(np.finfo(np.float32).max)


def parse_examples(body: bytes) -> tuple[str, Any]:
    """The signature name ("" for the default) and the tensorflow.serving.Input of a classify or regress body.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    document = json_request.json_object(body)
    signature = json_request.signature_name(document)
    parsed = input_pb2.Input()
    has_context = "context" in document
    if has_context:
        _fill_example(document["context"], parsed.example_list_with_context.context)
    if "examples" not in document:
        raise _format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = parsed.example_list_with_context if has_context else parsed.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return signature, parsed


def classifications(result: Any) -> bytes:
    """The body of a classify answer: per example a list of [label, score] pairs."""
    rows = ", ".join(f"[{', '.join(map(_class, entry.classes))}]" for entry in result.classifications)
    return f'{{\n    "results": [{rows}\n    ]\n}}'.encode()


def regressions(result: Any) -> bytes:
    """The body of a regress answer: one number per example."""
    values = np.array([entry.value for entry in result.regressions], np.float32)
    return f'{{\n    "results": [{", ".join(json_text.decimals(values))}]\n}}'.encode()


def _class(entry: Any) -> str:
    return f"[{json_text.quoted(entry.label)}, {json_text.decimal(entry.score, single=True)}]"


def _fill_example(value: Any, example: Any) -> None:
    if not isinstance(value, dict):
        raise _invalid(f"Example must be JSON object but got JSON {json_text.type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add(element, name, feature)


def _add(value: Any, name: str, feature: Any) -> None:
    if isinstance(value, bool):
        _list_of(feature, "int64_list", name).append(int(value))
    elif isinstance(value, str):
        _list_of(feature, "bytes_list", name).append(value.encode("utf-8", "surrogateescape"))
    elif json_values.is_base64_object(value):
        _list_of(feature, "bytes_list", name).append(json_values.decode_base64(value))
    elif isinstance(value, float):
        values = _list_of(feature, "float_list", name)
        if abs(value) > _FLOAT_MAX and abs(value) != float("inf"):
            raise _invalid(
                f"Cannot convert JSON value: {json_text.pretty(value)} to float without loss of precision."
            )
        values.append(value)
    elif isinstance(value, int):
        values = _list_of(feature, "int64_list", name)
        if value >= 2**63:
            raise _invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        values.append(value)
    else:
        raise _invalid(f"Feature: {name} has element with unexpected JSON type: {json_text.type_name(value)}")


_KINDS: Mapping[str | None, str] = {
    "bytes_list": "bytes",
    "float_list": "float",
    "int64_list": "int64",
    None: "UNKNOWN",
}


def _list_of(feature: Any, kind: str, name: str) -> Any:
    known = feature.WhichOneof("kind")
    if known not in (None, kind):
        raise _invalid(f"Unexpected element type in feature: {name} expecting type: {_KINDS[known]}")
    return getattr(feature, kind).value


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)


def _format_error(value: Any, text: str) -> RequestError:
    return _invalid(f"JSON Value: {json_text.pretty(value)} {text}")
