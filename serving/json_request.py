"""A REST predict body to arrays: which keys it has, which tensors they are, and every text that says what is
wrong with them (tensorflow_serving/util/json_tensor.cc). The values themselves are `json_values`' business."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.serving import json_text
from isthmus.serving.errors import RequestError
from isthmus.serving.json_values import Array, Filler, dense_array, format_error, invalid, is_base64_object

__all__ = ["PredictBody", "json_object", "parse_predict", "signature_name"]


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
        raise format_error(document, "Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The optional `signature_name` of a body; "" when it is not there."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
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
        raise invalid(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise format_error(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise format_error(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        return PredictBody(signature, _from_instances(instances, dtypes), row_format=True)
    if "inputs" in document:
        return PredictBody(signature, _from_inputs(document["inputs"], dtypes), row_format=False)
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_instances(instances: list[Any], dtypes: Mapping[str, int]) -> dict[str, Array]:
    first = instances[0]
    if not isinstance(first, dict) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    if _is_named(first):
        return _from_named_instances(instances, dtypes)
    name, dtype = next(iter(dtypes.items()))
    values = dense_array(instances, dtype)
    return {name: values if values is not None else _from_plain_instances(instances, dtype)}


def _from_plain_instances(instances: list[Any], dtype: int) -> Array:
    filler = Filler(dtype)
    for index, element in enumerate(instances):
        if _is_named(element):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        try:
            filler.add(element)
        except RequestError as error:
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. Error: {error}"
            ) from error
    return filler.array(len(instances))


def _from_named_instances(instances: list[Any], dtypes: Mapping[str, int]) -> dict[str, Array]:
    names = dtypes.keys()
    if all(_is_named(element) and element.keys() == names for element in instances):
        columns = {
            name: dense_array([element[name] for element in instances], dtypes[name])
            for name in sorted(names)
        }
        dense = {name: column for name, column in columns.items() if column is not None}
        if len(dense) == len(columns):
            return dense
    fillers = {name: Filler(dtype) for name, dtype in dtypes.items()}
    for index, element in enumerate(instances):
        if not _is_named(element):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        for name, value in element.items():
            try:
                if name not in fillers:
                    raise invalid(f"JSON object: does not have named input: {name}")
                fillers[name].add(value)
            except RequestError as error:
                raise invalid(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: {error}"
                ) from error
        if element.keys() != names:
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{json_text.pretty(element)} "
                f"keys must be equal to: {','.join(sorted(names))}"
            )
    return {name: fillers[name].array(len(instances)) for name in names}


def _from_inputs(value: Any, dtypes: Mapping[str, int]) -> dict[str, Array]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        name, dtype = next(iter(dtypes.items()))
        return {name: _column(value, dtype)}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _column(value[name], dtype)
    return arrays


def _column(value: Any, dtype: int) -> Array:
    values = dense_array(value, dtype) if isinstance(value, list) and value else None
    if values is not None:
        return values
    filler = Filler(dtype)
    filler.add(value)
    return filler.array(None)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64_object(value)
