"""Classify, Regress and MultiInference: the calls that take tf.train.Examples.

Rules and texts are those of
tensorflow_serving/servables/tensorflow/{classifier,regressor,multi_inference,util}.cc.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from isthmus.serving import tensors
from isthmus.serving.errors import RequestError
from isthmus.serving.inference import CLASSIFY_METHOD, REGRESS_METHOD, CallOptions
from isthmus.serving.savedmodel import DEFAULT_SIGNATURE, LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tracing import annotate

__all__ = ["classify", "multi_inference", "regress", "serialized_examples"]

Array = np.ndarray[Any, Any]

_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_REGRESSIONS = "outputs"


def classify(model: LoadedModel, signature_name: str, example_input: Any, options: CallOptions) -> Any:
    """A tensorflow.serving.ClassificationResult for a tensorflow.serving.Input.

    Raises:
        RequestError: INVALID_ARGUMENT or FAILED_PRECONDITION for a signature that is no classification, an
            empty input, or outputs of a wrong shape.
    """
    signature = _signature(model, signature_name, "classification", CLASSIFY_METHOD, options)
    feed, fetches = _classification_tensors(signature)
    annotate(signature=signature_name or DEFAULT_SIGNATURE)
    values, num_examples = _run(model, example_input, feed, fetches, options)
    return _classification(signature, values, num_examples)


def regress(model: LoadedModel, signature_name: str, example_input: Any, options: CallOptions) -> Any:
    """A tensorflow.serving.RegressionResult for a tensorflow.serving.Input.

    Raises:
        RequestError: as `classify`.
    """
    signature = _signature(model, signature_name, "regression", REGRESS_METHOD, options)
    feed, fetches = _regression_tensors(signature)
    annotate(signature=signature_name or DEFAULT_SIGNATURE)
    values, num_examples = _run(model, example_input, feed, fetches, options)
    return _regression(signature, values, num_examples)


def multi_inference(model: LoadedModel, request: Any, version: int, options: CallOptions) -> Any:
    """A tensorflow.serving.MultiInferenceResponse: several signatures of one model in one computation.

    Raises:
        RequestError: as `classify`, and when the tasks differ in model or input, or name a signature twice.
    """
    chosen, feed, fetches = _chosen_signatures(model, request, options)
    values, num_examples = _run(model, request.input, feed, fetches, options)
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, chosen, strict=True):
        result = response.results.add()
        if task.method_name == CLASSIFY_METHOD:
            result.classification_result.CopyFrom(_classification(signature, values, num_examples))
        else:
            result.regression_result.CopyFrom(_regression(signature, values, num_examples))
        result.model_spec.name = task.model_spec.name
        result.model_spec.signature_name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        result.model_spec.version.value = version
    return response


def serialized_examples(example_input: Any) -> Array:
    """The tensorflow.serving.Input as the string tensor that goes into the graph; a context is put before
    each one.

    Raises:
        RequestError: INVALID_ARGUMENT `Input is empty.`
    """
    kind = example_input.WhichOneof("kind")
    if kind == "example_list_with_context":
        context = example_input.example_list_with_context.context.SerializeToString()
        examples = example_input.example_list_with_context.examples
    else:
        context, examples = b"", example_input.example_list.examples
    if not examples:
        raise RequestError(Code.INVALID_ARGUMENT, "Input is empty.")
    serialized = np.empty(len(examples), object)
    serialized[:] = [context + example.SerializeToString() for example in examples]
    return serialized


def _signature(model: LoadedModel, name: str, kind: str, method: str, options: CallOptions) -> Any:
    wanted = name or DEFAULT_SIGNATURE
    signature = model.signatures.get(wanted)
    if signature is None:
        raise RequestError(Code.INVALID_ARGUMENT, f"No signature was found with the name: {wanted}")
    _check_method(signature, kind, method, options)
    return signature


def _check_method(signature: Any, kind: str, method: str, options: CallOptions) -> None:
    if options.check_method_name and signature.method_name != method:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}",
        )


def _run(
    model: LoadedModel, example_input: Any, feed: str, fetches: Sequence[str], options: CallOptions
) -> tuple[dict[str, Array], int]:
    examples = serialized_examples(example_input)
    annotate(batch=len(examples))
    values = model.run([(feed, examples)], fetches, timeout_ms=options.timeout_ms)
    return dict(zip(fetches, values, strict=True)), len(examples)


def _classification_tensors(signature: Any) -> tuple[str, list[str]]:
    if len(signature.inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise _invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if _INPUTS not in signature.inputs:
        raise _unmet(f"No classification inputs found in SignatureDef: {signature}")
    fetches = [signature.outputs[name].name for name in (_CLASSES, _SCORES) if name in signature.outputs]
    if not fetches:
        raise _unmet(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or '
            f'"{_SCORES}". '
            f"Signature was: {signature}"
        )
    return signature.inputs[_INPUTS].name, fetches


def _regression_tensors(signature: Any) -> tuple[str, list[str]]:
    if len(signature.inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise _invalid("Expected one output Tensor.")
    if _INPUTS not in signature.inputs:
        raise _unmet(f"No regression inputs found in SignatureDef: {signature}")
    if _REGRESSIONS not in signature.outputs:
        raise _unmet(f"No regression outputs found in SignatureDef: {signature}")
    return signature.inputs[_INPUTS].name, [signature.outputs[_REGRESSIONS].name]


def _classification(signature: Any, values: Mapping[str, Array], num_examples: int) -> Any:
    classes = _checked_output(signature, _CLASSES, values, num_examples, tensors.DT_STRING)
    scores = _checked_output(signature, _SCORES, values, num_examples, 1)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise _invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. "
            f"{scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    known = classes if classes is not None else scores
    assert known is not None
    for row in range(num_examples):
        entry = result.classifications.add()
        for column in range(known.shape[1]):
            made = entry.classes.add()
            if classes is not None:
                made.label = _text(classes[row, column])
            if scores is not None:
                made.score = scores[row, column]
    return result


def _checked_output(
    signature: Any, alias: str, values: Mapping[str, Array], num_examples: int, dtype: int
) -> Array | None:
    if alias not in signature.outputs:
        return None
    array = values[signature.outputs[alias].name]
    if array.ndim != 2:
        raise _invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    if tensors.dtype_number(array) != dtype:
        wanted = "DT_STRING" if dtype == tensors.DT_STRING else "DT_FLOAT"
        raise _invalid(f"Expected {alias} Tensor of {wanted}. Got: {_dtype(array)}")
    if len(array) != num_examples:
        raise _invalid(f"Expected {alias} output batch size of {num_examples}. Got: {len(array)}")
    return array


def _regression(signature: Any, values: Mapping[str, Array], num_examples: int) -> Any:
    output = values[signature.outputs[_REGRESSIONS].name]
    if output.ndim != 1 and not (output.ndim == 2 and output.shape[1] == 1):
        raise _invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(output)}"
        )
    if len(output) != num_examples:
        raise _invalid(f"Input batch size did not match output batch size: {num_examples} vs. {len(output)}")
    if tensors.dtype_number(output) != 1:
        raise _invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(output)}")
    result = regression_pb2.RegressionResult()
    for value in output.reshape(-1).tolist():
        result.regressions.add().value = value
    return result


def _chosen_signatures(
    model: LoadedModel, request: Any, options: CallOptions
) -> tuple[list[Any], str, list[str]]:
    """Each task's signature, the one tensor they are all fed by, and what to fetch."""
    seen: list[str] = []
    chosen: list[Any] = []
    feed, fetches = "", set()
    for task in request.tasks:
        spec = task.model_spec
        if not spec.name:
            raise _invalid("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise _invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise _invalid(f"Duplicate evaluation of signature: {name}")
        seen.append(name)
        signature = model.signatures.get(name)
        if signature is None:
            raise _invalid(f"Requested signature not found in model graph: {name}")
        kind, tensors_of = _task_kind(task.method_name)
        _check_method(signature, kind, task.method_name, options)
        task_feed, task_fetches = tensors_of(signature)
        if feed and task_feed != feed:
            raise _invalid("Input tensor must be the same for all Signatures.")
        feed = task_feed
        fetches.update(task_fetches)
        chosen.append(signature)
    return chosen, feed, sorted(fetches)


def _task_kind(method: str) -> tuple[str, Callable[[Any], tuple[str, list[str]]]]:
    if method == CLASSIFY_METHOD:
        return "classification", _classification_tensors
    if method == REGRESS_METHOD:
        return "regression", _regression_tensors
    raise RequestError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}")


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array: Array) -> str:
    return f"DT_{tensors.DTYPE_NAMES[tensors.dtype_number(array)].upper()}"


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)


def _unmet(message: str) -> RequestError:
    return RequestError(Code.FAILED_PRECONDITION, message)
