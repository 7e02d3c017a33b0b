"""Predict on a loaded model: which tensors are fed, which are fetched, and every text the API answers with.

The rules and texts are those of tensorflow_serving/servables/tensorflow/predict_util.cc and
tensorflow/cc/saved_model/util.cc.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.serving import tensors
from isthmus.serving.errors import RequestError
from isthmus.serving.savedmodel import DEFAULT_SIGNATURE, LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tracing import annotate

__all__ = ["CallOptions", "input_infos", "predict", "predict_from_protos"]

PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """How calls are made."""

    check_method_name: bool = False
    """Demand that a signature's method_name is the one of the API that calls it."""

    timeout_ms: int = 0
    """Stop a computation after this long. 0: never."""


_DEFAULTS = CallOptions()


def predict_from_protos(
    model: LoadedModel,
    signature_name: str,
    protos: Mapping[str, Any],
    output_filter: Sequence[str] = (),
    options: CallOptions = _DEFAULTS,
) -> dict[str, np.ndarray[Any, Any]]:
    """`predict` of TensorProtos, as the gRPC API does it.

    Raises:
        RequestError: FAILED_PRECONDITION for an unknown signature; INVALID_ARGUMENT for wrong inputs.
    """
    signature = _signature_for_grpc(model, signature_name)
    _check_inputs(signature, protos, options)
    arrays = {}
    for alias in sorted(protos):
        try:
            arrays[alias] = tensors.array_from_proto(protos[alias])
        except ValueError as error:
            if alias in signature.inputs:
                raise RequestError(Code.INVALID_ARGUMENT, f"tensor parsing error: {alias}") from error
    annotate(signature=signature_name or DEFAULT_SIGNATURE)
    return _run(model, signature, _Inputs(arrays, protos), output_filter, options)


def predict(
    model: LoadedModel, signature_name: str, arrays: Arrays, options: CallOptions = _DEFAULTS
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a signature on arrays by input alias; all its outputs by alias, sorted.

    Raises:
        RequestError: FAILED_PRECONDITION for an unknown signature; INVALID_ARGUMENT for wrong inputs.
    """
    signature = _signature_for_grpc(model, signature_name)
    _check_inputs(signature, arrays, options)
    annotate(signature=signature_name or DEFAULT_SIGNATURE)
    return _run(model, signature, _Inputs(arrays, arrays), (), options)


def input_infos(model: LoadedModel, signature_name: str) -> Mapping[str, Any]:
    """TensorInfo by input alias, as the REST API looks it up to parse a body.

    Raises:
        RequestError: INVALID_ARGUMENT for an unknown signature (the gRPC API has another text and code).
    """
    name = signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise RequestError(
            Code.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def'
        )
    inputs: Mapping[str, Any] = signature.inputs
    return inputs


def _signature_for_grpc(model: LoadedModel, signature_name: str) -> Any:
    name = signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return signature


def _check_inputs(signature: Any, sent: Collection[str], options: CallOptions) -> None:
    known_methods = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
    if options.check_method_name and signature.method_name not in known_methods:
        raise RequestError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(known_methods)}}}. "
            f"Was: {signature.method_name}",
        )
    wanted = signature.inputs
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        sent_names, wanted_names = sorted(sent), sorted(wanted)
        extra = sorted(set(sent_names) - set(wanted_names))
        missing = sorted(set(wanted_names) - set(sent_names))
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({{{','.join(sent_names)}}}) != len({{{','.join(wanted_names)}}}). "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
        )


@dataclass(frozen=True)
class _Inputs:
    arrays: Arrays
    sent: Collection[str]
    """Aliases that the request had; one whose tensor could not be read may be missing in arrays."""


def _run(
    model: LoadedModel, signature: Any, inputs: _Inputs, output_filter: Sequence[str], options: CallOptions
) -> dict[str, np.ndarray[Any, Any]]:
    aliases = sorted(signature.inputs)
    feeds = [(signature.inputs[alias].name, _input(signature, alias, inputs)) for alias in aliases]
    used = [alias for alias in aliases if alias in inputs.sent]
    if len(used) != len(inputs.sent):
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"Inputs contains invalid name. Used request inputs: {','.join(used)}, "
            f"request input: {','.join(sorted(inputs.sent))}",
        )
    if feeds and feeds[0][1].ndim:
        annotate(batch=feeds[0][1].shape[0])
    outputs = _outputs(signature, output_filter)
    fetches = [signature.outputs[alias].name for alias in outputs]
    return dict(zip(outputs, model.run(feeds, fetches, timeout_ms=options.timeout_ms), strict=True))


def _input(signature: Any, alias: str, inputs: _Inputs) -> np.ndarray[Any, Any]:
    if alias in inputs.arrays:
        return inputs.arrays[alias]
    if alias in signature.defaults:
        return tensors.array_from_proto(signature.defaults[alias])
    raise RequestError(
        Code.INVALID_ARGUMENT,
        f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request "
        "and no "
        f"default value provided. Inputs expected to be in the request {{{','.join(sorted(inputs.sent))}}}, "
        "or "
        f"default input alias set: {','.join(sorted(signature.defaults))}",
    )


def _outputs(signature: Any, output_filter: Sequence[str]) -> list[str]:
    if not output_filter:
        return sorted(signature.outputs)
    aliases: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{','.join(sorted(signature.outputs))}}}.",
            )
        if alias in aliases:
            raise RequestError(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        aliases.append(alias)
    return aliases
