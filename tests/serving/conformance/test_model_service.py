"""Status, metadata, reflection, health and ReloadConfig."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2

from isthmus.serving.private_messages import message_class

GrpcError = Callable[..., tuple[str, str]]


def status(target: Any, model: str, version: int | None = None) -> list[tuple[int, str]]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    response = target.model.GetModelStatus(request, timeout=30)
    name = get_model_status_pb2.ModelVersionStatus.State.Name
    return [(entry.version, name(entry.state)) for entry in response.model_version_status]


def test_rest_status(target: Any) -> None:
    answer = target.get("/v1/models/half_plus_two")
    assert answer.status == 200
    assert answer.body.decode() == (
        '{\n "model_version_status": [\n  {\n   "version": "123",\n   "state": "AVAILABLE",\n   "status": {\n'
        '    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
    )
    assert target.get("/v1/models/half_plus_two/versions/123").body == answer.body


def test_rest_status_of_several_versions(target: Any) -> None:
    entries = target.get("/v1/models/half_plus_n").json["model_version_status"]
    assert [(entry["version"], entry["state"]) for entry in entries] == [
        ("3", "AVAILABLE"),
        ("2", "AVAILABLE"),
    ]


def test_grpc_status(target: Any) -> None:
    assert status(target, "half_plus_n") == [(3, "AVAILABLE"), (2, "AVAILABLE")]
    assert status(target, "half_plus_n", 2) == [(2, "AVAILABLE")]


def test_unknown_status(target: Any, grpc_error: GrpcError) -> None:
    answer = target.get("/v1/models/nope")
    assert (answer.status, answer.error) == (404, "Could not find any versions of model nope")
    answer = target.get("/v1/models/half_plus_n/versions/1")
    assert (answer.status, answer.error) == (404, "Could not find version 1 of model half_plus_n")
    assert grpc_error(status, target, "nope") == ("NOT_FOUND", "Could not find any versions of model nope")
    request = get_model_status_pb2.GetModelStatusRequest()
    assert grpc_error(target.model.GetModelStatus, request, timeout=30) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )


def test_status_of_all_models_is_not_offered(target: Any) -> None:
    answer = target.get("/v1/models")
    assert (answer.status, answer.error) == (400, "Missing model name in request.")


def test_rest_metadata(target: Any) -> None:
    answer = target.get("/v1/models/half_plus_two/metadata")
    assert answer.status == 200
    assert answer.json["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signature = answer.json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "name": "x:0",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
            "unknown_rank": False,
        },
    }
    assert target.get("/v1/models/half_plus_two/versions/123/metadata").json == answer.json


def test_rest_metadata_errors(target: Any) -> None:
    answer = target.get("/v1/models/nope/metadata")
    assert (answer.status, answer.error) == (404, "Servable not found for request: Latest(nope)")
    answer = target.get("/v1/models/half_plus_n/labels/nope/metadata")
    assert (answer.status, answer.error) == (400, "Unrecognized servable version label: nope")


def metadata_request(*fields: str, model: str = "half_plus_n") -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = model
    return request


def test_grpc_metadata(target: Any) -> None:
    response = target.prediction.GetModelMetadata(metadata_request("signature_def"), timeout=30)
    assert (response.model_spec.name, response.model_spec.version.value) == ("half_plus_n", 3)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert list(signatures.signature_def["serving_default"].outputs) == ["y"]


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (
            metadata_request(),
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (metadata_request("x"), "INVALID_ARGUMENT", "Metadata field x is not supported"),
        (
            metadata_request("signature_def", model="nope"),
            "NOT_FOUND",
            "Servable not found for request: Latest(nope)",
        ),
        (
            get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]),
            "INVALID_ARGUMENT",
            "Missing ModelSpec",
        ),
    ],
)
def test_grpc_metadata_errors(
    target: Any, grpc_error: GrpcError, request_: Any, code: str, text: str
) -> None:
    assert grpc_error(target.prediction.GetModelMetadata, request_, timeout=30) == (code, text)


def test_health(target: Any, grpc_error: GrpcError) -> None:
    request_class = message_class("grpc.health.v1.HealthCheckRequest")
    check = target.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=request_class.SerializeToString,
        response_deserializer=message_class("grpc.health.v1.HealthCheckResponse").FromString,
    )
    assert check(request_class(), timeout=30).status == 1
    assert check(request_class(service="tensorflow.serving.PredictionService"), timeout=30).status == 1
    assert grpc_error(check, request_class(service="nope"), timeout=30)[0] == "NOT_FOUND"


def test_reflection(target: Any) -> None:
    package = "grpc.reflection.v1alpha."
    request_class = message_class(package + "ServerReflectionRequest")
    ask = target.channel.stream_stream(
        f"/{package}ServerReflection/ServerReflectionInfo",
        request_serializer=request_class.SerializeToString,
        response_deserializer=message_class(package + "ServerReflectionResponse").FromString,
    )
    requests = [
        request_class(list_services=""),
        request_class(file_containing_symbol="tensorflow.serving.PredictionService"),
        request_class(file_containing_symbol="no.Such"),
    ]
    services, file, missing = ask(iter(requests), timeout=30)
    names = {service.name for service in services.list_services_response.service}
    assert {"tensorflow.serving.ModelService", "tensorflow.serving.PredictionService"} <= names
    assert b"prediction_service.proto" in file.file_descriptor_response.file_descriptor_proto[0]
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# ---- ReloadConfig: last, and it puts things back ----


def reload_config(target: Any, text: str, timeout: float | None = 60) -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    return target.model.HandleReloadConfigRequest(request, timeout=timeout)


@pytest.fixture
def models_config(models_root: Path, target: Any) -> Any:
    """The text of the running configuration, put back afterwards."""
    text = (models_root / "models.config").read_text()
    yield text
    reload_config(target, text)
    deadline = time.monotonic() + 30
    while (3, "AVAILABLE") not in status(target, "half_plus_n") or (2, "AVAILABLE") not in status(
        target, "half_plus_n"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_reload_adds_a_model_and_waits_for_it(target: Any, models_config: str, models_root: Path) -> None:
    added = models_config.rstrip().removesuffix("}") + (
        "  config "
        f'{{ name: "fresh" base_path: "{models_root}/half_plus_n" model_platform: "tensorflow" }}\n}}'
    )
    response = reload_config(target, added)
    assert response.status.error_code == 0
    answer = target.predict("fresh", {"x": np.array([1.0], np.float32)})
    assert (answer.model_spec.version.value, list(answer.outputs["y"].float_val)) == (3, [3.5])


def test_reload_without_a_deadline(target: Any, models_config: str) -> None:
    assert reload_config(target, models_config, timeout=None).status.error_code == 0


def test_reload_moves_a_label(target: Any, models_config: str) -> None:
    reload_config(target, models_config.replace('key: "stable" value: 2', 'key: "stable" value: 3'))
    answer = target.predict("half_plus_n", {"x": np.array([1.0], np.float32)}, label="stable")
    assert answer.model_spec.version.value == 3


def test_reload_refuses_to_move_a_label_to_a_version_that_is_not_there(
    target: Any, models_config: str, grpc_error: GrpcError
) -> None:
    moved = models_config.replace('key: "stable" value: 2', 'key: "stable" value: 1')
    assert grpc_error(reload_config, target, moved) == (
        "FAILED_PRECONDITION",
        "Request to assign label to version 1 of model half_plus_n, which is not currently available for "
        "inference",
    )
    answer = target.predict("half_plus_n", {"x": np.array([1.0], np.float32)}, label="stable")
    assert answer.model_spec.version.value == 2


def test_reload_changes_the_policy(target: Any, models_config: str) -> None:
    reload_config(target, models_config.replace("versions: 2 ", ""))
    deadline = time.monotonic() + 30
    while status(target, "half_plus_n") != [(3, "AVAILABLE"), (2, "END")]:
        assert time.monotonic() < deadline, status(target, "half_plus_n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            ('name: "echo"', 'name: "half_plus_n"'),
            "Illegal to list model half_plus_n multiple times in config list",
        ),
        (
            ('model_platform: "tensorflow"', 'model_platform: "caffe"'),
            "Model half_plus_two requests unsupported platform caffe",
        ),
        (
            ('model_platform: "tensorflow"', ""),
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform.",
        ),
    ],
)
def test_reload_refuses(
    target: Any, models_config: str, grpc_error: GrpcError, change: tuple[str, str], text: str
) -> None:
    assert grpc_error(reload_config, target, models_config.replace(*change)) == ("INVALID_ARGUMENT", text)


def test_reload_refuses_a_relative_path(
    target: Any, models_config: str, models_root: Path, grpc_error: GrpcError
) -> None:
    relative = models_config.replace(f'"{models_root}/echo"', '"echo"')
    assert grpc_error(reload_config, target, relative) == (
        "INVALID_ARGUMENT",
        "Expected model echo to have an absolute path or URI; got base_path()=echo",
    )


def test_reload_of_something_else(target: Any, grpc_error: GrpcError) -> None:
    assert grpc_error(reload_config, target, "") == (
        "INVALID_ARGUMENT",
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported",
    )
