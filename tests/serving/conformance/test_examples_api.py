"""Classify, Regress and MultiInference over gRPC and REST."""

from collections.abc import Callable
from typing import Any

import pytest
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

GrpcError = Callable[..., tuple[str, str]]
MODEL = "/v1/models/half_plus_two"


def fill(request: Any, signature: str, *values: float, model: str = "half_plus_two") -> Any:
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for value in values:
        feature = request.input.example_list.examples.add().features.feature["x"]
        feature.float_list.value.append(value)
    return request


def classify(target: Any, signature: str, *values: float) -> Any:
    request = fill(classification_pb2.ClassificationRequest(), signature, *values)
    return target.prediction.Classify(request, timeout=30)


def regress(target: Any, signature: str, *values: float) -> Any:
    request = fill(regression_pb2.RegressionRequest(), signature, *values)
    return target.prediction.Regress(request, timeout=30)


def test_classify(target: Any) -> None:
    response = classify(target, "classify_x_to_y", 2.0, 4.0)
    assert [[c.score for c in entry.classes] for entry in response.result.classifications] == [[3.0], [4.0]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 123, "classify_x_to_y")


def test_classify_with_labels(target: Any) -> None:
    response = classify(target, "classify_labels", 2.0)
    (entry,) = response.result.classifications
    assert [(c.label, c.score) for c in entry.classes] == [("one", 3.0)]


def test_regress(target: Any) -> None:
    response = regress(target, "regress_x_to_y", 2.0, 4.0)
    assert [entry.value for entry in response.result.regressions] == [3.0, 4.0]
    assert response.model_spec.signature_name == "regress_x_to_y"


def test_context_is_put_before_each_example(target: Any) -> None:
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "half_plus_two", "regress_x_to_y"
    examples = request.input.example_list_with_context
    examples.context.features.feature["x"].float_list.value.append(8.0)
    examples.examples.add()
    examples.examples.add().features.feature["x"].float_list.value.append(2.0)
    response = target.prediction.Regress(request, timeout=30)
    assert [entry.value for entry in response.result.regressions] == [6.0, 3.0]


@pytest.mark.parametrize(
    ("signature", "values", "text"),
    [
        ("regress_x_to_y", (), "Input is empty."),
        ("nope", (1.0,), "No signature was found with the name: nope"),
    ],
)
def test_wrong_request(target: Any, grpc_error: GrpcError, signature: str, values: Any, text: str) -> None:
    for call in (classify, regress):
        name = signature.replace("regress", "classify") if call is classify else signature
        assert grpc_error(call, target, name, *values) == ("INVALID_ARGUMENT", text)


def test_signature_without_the_outputs(target: Any, grpc_error: GrpcError) -> None:
    code, text = grpc_error(classify, target, "no_scores", 1.0)
    assert code == "FAILED_PRECONDITION"
    assert text.startswith(
        'Expected classification signature outputs to contain at least one of "classes" or "scores". '
        "Signature was: "
    )


def test_no_spec(target: Any, grpc_error: GrpcError) -> None:
    for call, request in (
        (target.prediction.Classify, classification_pb2.ClassificationRequest()),
        (target.prediction.Regress, regression_pb2.RegressionRequest()),
    ):
        assert grpc_error(call, request, timeout=30) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def multi(*tasks: tuple[str, str, str], value: float | None = 2.0) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    if value is not None:
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return request


def test_multi_inference(target: Any) -> None:
    request = multi(
        ("half_plus_two", "regress_x_to_y", "regress"), ("half_plus_two", "classify_x_to_y", "classify")
    )
    response = target.prediction.MultiInference(request, timeout=30)
    assert response.results[0].regression_result.regressions[0].value == 3.0
    assert response.results[1].classification_result.classifications[0].classes[0].score == 3.0
    assert [r.model_spec.signature_name for r in response.results] == ["regress_x_to_y", "classify_x_to_y"]
    assert {r.model_spec.version.value for r in response.results} == {123}


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ((), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            (("half_plus_two", "regress_x_to_y", "regress"), ("half_plus_n", "regress_x_to_y2", "regress")),
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            (("half_plus_two", "regress_x_to_y", "regress"), ("", "regress_x_to_y2", "regress")),
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name.",
        ),
        (
            (("half_plus_two", "regress_x_to_y", "regress"), ("half_plus_two", "regress_x_to_y", "regress")),
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress_x_to_y",
        ),
        (
            (("half_plus_two", "nope", "regress"),),
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        (
            (("half_plus_two", "regress_x_to_y", "predict"),),
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            (("half_plus_two", "regress_x_to_y", "regress"), ("half_plus_two", "regress_x", "regress")),
            "INVALID_ARGUMENT",
            "Input tensor must be the same for all Signatures.",
        ),
    ],
)
def test_wrong_multi_inference(target: Any, grpc_error: GrpcError, tasks: Any, code: str, text: str) -> None:
    assert grpc_error(target.prediction.MultiInference, multi(*tasks), timeout=30) == (code, text)


# ---- REST ----


def test_rest_classify(target: Any) -> None:
    body = {"signature_name": "classify_labels", "examples": [{"x": 2.0}, {"x": [4.0]}]}
    answer = target.post(f"{MODEL}:classify", body)
    assert answer.body == b'{\n    "results": [[["one", 3.0]], [["one", 4.0]]\n    ]\n}'


def test_rest_regress(target: Any) -> None:
    answer = target.post(f"{MODEL}:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]})
    assert answer.json == {"results": [3.0]}


def test_rest_context(target: Any) -> None:
    body = {"signature_name": "regress_x_to_y", "context": {"x": 8.0}, "examples": [{}, {"x": 2.0}]}
    assert target.post(f"{MODEL}:regress", body).json == {"results": [6.0, 3.0]}


def test_rest_default_signature_is_no_classification(target: Any) -> None:
    answer = target.post(f"{MODEL}:classify", {"examples": [{"x": 2.0}]})
    assert answer.status == 400


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("{}", "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        (
            '{"examples": 1}',
            "JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array",
        ),
        ('{"examples": []}', "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        ('{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": {"y": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": [1.0, "a"]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": [1, 2.0]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": ["a", 1]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        (
            '{"examples": [{"x": 18446744073709551615}]}',
            "Feature: x has uint64 element. Only int64 is supported.",
        ),
        (
            '{"examples": [{"x": 3.5e38}]}',
            "Cannot convert JSON value: 3.5e+38 to float without loss of precision.",
        ),
    ],
)
def test_rest_wrong_body(target: Any, body: str, error: str) -> None:
    for method in ("classify", "regress"):
        answer = target.post(f"{MODEL}:{method}", body)
        assert (answer.status, answer.error) == (400, error)


def test_rest_wrong_feature_type_is_the_graphs_error(target: Any) -> None:
    answer = target.post(f"{MODEL}:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 2}]})
    assert answer.status == 400
    assert "Data types don't match. Data type: int64 but expected type: float" in answer.error
