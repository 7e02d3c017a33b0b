"""Predict over gRPC: specs, tensors, filters, errors."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2

GrpcError = Callable[..., tuple[str, str]]
X = np.array([1.0, 2.0], np.float32)


def test_predict_answers_in_repeated_fields(target: Any) -> None:
    response = target.predict("half_plus_two", {"x": X})
    assert list(response.outputs) == ["y"]
    assert response.outputs["y"].dtype == types_pb2.DT_FLOAT
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    assert response.outputs["y"].tensor_content == b""
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 123, "serving_default")


def test_version_and_label(target: Any) -> None:
    by_version = target.predict("half_plus_n", {"x": X}, version=2)
    assert (by_version.model_spec.version.value, by_version.outputs["y"].float_val[0]) == (2, 2.5)
    by_label = target.predict("half_plus_n", {"x": X}, label="canary")
    assert (by_label.model_spec.version.value, by_label.outputs["y"].float_val[0]) == (3, 3.5)
    assert target.predict("half_plus_n", {"x": X}).model_spec.version.value == 3


def test_many_values(target: Any) -> None:
    values = np.random.default_rng(0).normal(size=(3, 224, 224)).astype(np.float32)
    response = target.predict("echo", {"x": values}, signature="echo_float32")
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), values)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1.5, -2.5]], np.float64),
        np.array([1, -2], np.int8),
        np.array([1, -2], np.int16),
        np.array([2**31 - 1, -2], np.int32),
        np.array([2**63 - 1, -2], np.int64),
        np.array([255, 0], np.uint8),
        np.array([65535], np.uint16),
        np.array([2**32 - 1], np.uint32),
        np.array([2**64 - 1], np.uint64),
        np.array([True, False]),
        np.array([1.5, 2.5], np.float16),
        np.array([1.5, 2.5], ml_dtypes.bfloat16),
        np.array([1 + 2j], np.complex64),
        np.array([[b"a\x00b", b""], [b"\xff", b"z"]], object),
        np.array(3.0, np.float32),
        np.zeros((0, 4), np.float32),
    ],
    ids=lambda values: f"{values.dtype.name}{list(values.shape)}",
)
def test_every_dtype(target: Any, values: np.ndarray) -> None:
    name = "string" if values.dtype == object else values.dtype.name
    response = target.predict("echo", {"x": values}, signature=f"echo_{name}")
    echoed = tf.make_ndarray(response.outputs["y"])
    assert echoed.shape == values.shape
    assert echoed.tobytes() == values.tobytes() if values.dtype != object else (echoed == values).all()


def test_float_val_with_one_value_fills_the_shape(target: Any) -> None:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.5, 2.5])
    proto.tensor_shape.dim.add(size=4)
    response = target.predict("echo", {"x": proto}, signature="echo_float32")
    assert list(tf.make_ndarray(response.outputs["y"])) == [1.5, 2.5, 2.5, 2.5]


def test_no_values_are_zeros(target: Any) -> None:
    for dtype, expected in ((types_pb2.DT_FLOAT, 0.0), (types_pb2.DT_STRING, b"")):
        proto = tensor_pb2.TensorProto(dtype=dtype)
        proto.tensor_shape.dim.add(size=2)
        signature = "echo_float32" if dtype == types_pb2.DT_FLOAT else "echo_string"
        response = target.predict("echo", {"x": proto}, signature=signature)
        assert list(tf.make_ndarray(response.outputs["y"])) == [expected] * 2


def test_output_filter(target: Any) -> None:
    inputs = {"a": X, "b": np.array([[1, 2], [3, 4]], np.int32)}
    response = target.predict("echo", inputs, signature="pair", output_filter=["copy"])
    assert list(response.outputs) == ["copy"]


@pytest.mark.parametrize(
    ("model", "spec", "answer"),
    [
        ("nope", {}, ("NOT_FOUND", "Servable not found for request: Latest(nope)")),
        (
            "half_plus_two",
            {"version": 7},
            ("NOT_FOUND", "Servable not found for request: Specific(half_plus_two, 7)"),
        ),
        (
            "half_plus_two",
            {"label": "nope"},
            ("INVALID_ARGUMENT", "Unrecognized servable version label: nope"),
        ),
        (
            "half_plus_two",
            {"signature": "nope"},
            ("FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ),
        ("", {}, ("INVALID_ARGUMENT", "ModelSpec has no name specified.")),
        (
            "half_plus_two",
            {"output_filter": ["z"]},
            (
                "INVALID_ARGUMENT",
                "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
            ),
        ),
        (
            "half_plus_two",
            {"output_filter": ["y", "y"]},
            ("INVALID_ARGUMENT", "duplicate output tensor alias: y"),
        ),
    ],
)
def test_wrong_spec(
    target: Any, grpc_error: GrpcError, model: str, spec: dict[str, Any], answer: tuple[str, str]
) -> None:
    assert grpc_error(target.predict, model, {"x": X}, **spec) == answer


def test_no_spec(target: Any, grpc_error: GrpcError) -> None:
    answer = grpc_error(target.prediction.Predict, predict_pb2.PredictRequest(), timeout=30)
    assert answer == ("INVALID_ARGUMENT", "Missing ModelSpec")


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {},
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
            "Missing but required: {x}.",
        ),
        (
            {"x": X, "z": X},
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
            "Missing but required: {}.",
        ),
        (
            {"z": X},
            "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {z}, or default input alias set: ",
        ),
    ],
)
def test_wrong_inputs(target: Any, grpc_error: GrpcError, inputs: dict[str, Any], text: str) -> None:
    assert grpc_error(target.predict, "half_plus_two", inputs) == ("INVALID_ARGUMENT", text)


def test_tensor_that_cannot_be_read(target: Any, grpc_error: GrpcError) -> None:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=b"12345")
    proto.tensor_shape.dim.add(size=2)
    assert grpc_error(target.predict, "half_plus_two", {"x": proto}) == (
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    )


def test_wrong_dtype(target: Any, grpc_error: GrpcError) -> None:
    code, text = grpc_error(target.predict, "half_plus_two", {"x": np.array([1, 2], np.int64)})
    assert code == "INVALID_ARGUMENT"
    assert "Expects arg[0] to be float but int64 is provided" in text


def test_wrong_rank(target: Any, grpc_error: GrpcError) -> None:
    code, _ = grpc_error(target.predict, "echo", {"a": X, "b": np.array([1, 2], np.int32)}, signature="pair")
    assert code == "INVALID_ARGUMENT"


def test_error_in_the_graph(target: Any, grpc_error: GrpcError) -> None:
    code, text = grpc_error(target.predict, "echo", {"x": X}, signature="fails")
    assert code == "INVALID_ARGUMENT"
    assert "no number : Tensor had Inf values" in text


def test_long_error_texts_are_cut(target: Any, grpc_error: GrpcError) -> None:
    code, text = grpc_error(target.predict, "m" * 3000, {"x": X})
    assert code == "NOT_FOUND"
    assert text == f"Servable not found for request: Latest({'m' * 3000})"[:1024] + "...TRUNCATED"
