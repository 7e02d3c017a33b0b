"""The gRPC API's calls as plain functions: requests from Python values, Python values from responses. Both gRPC
clients stand on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.serving import tensors
from isthmus.serving.client_base import Array, Signature, TensorSpec, VersionStatus, as_array
from isthmus.serving.errors import ServingError
from isthmus.serving.status import Code
from isthmus.serving.wire_messages import message_class

__all__ = [
    "CHANNEL_OPTIONS",
    "METADATA",
    "PREDICT",
    "RELOAD",
    "STATUS",
    "Method",
    "call_metadata",
    "metadata_request",
    "predict_outputs",
    "predict_request",
    "reload_request",
    "signatures",
    "status_request",
    "statuses",
]

_APIS = "tensorflow_serving.apis."
_MAX_MESSAGE_BYTES = 2**31 - 1
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
]


@dataclass(frozen=True)
class Method:
    """One method of the API."""

    name: str
    module: str
    response: str

    @property
    def path(self) -> str:
        """What gRPC calls it."""
        return f"/tensorflow.serving.{self.name}"

    def response_class(self) -> Any:
        """Class of the response message."""
        return message_class(_APIS + self.module, self.response)


PREDICT = Method("PredictionService/Predict", "predict_pb2", "PredictResponse")
STATUS = Method("ModelService/GetModelStatus", "get_model_status_pb2", "GetModelStatusResponse")
RELOAD = Method("ModelService/HandleReloadConfigRequest", "model_management_pb2", "ReloadConfigResponse")
METADATA = Method("PredictionService/GetModelMetadata", "get_model_metadata_pb2", "GetModelMetadataResponse")


def call_metadata(token: str | None) -> list[tuple[str, str]]:
    """What a call carries beside its message."""
    return [] if token is None else [("authorization", f"Bearer {token}")]


def predict_request(
    model: str,
    inputs: Mapping[str, Any],
    signature: str,
    version: int | None,
    label: str | None,
    outputs: Sequence[str],
) -> Any:
    """A PredictRequest.

    Raises:
        ServingError: a version and a label are given.
    """
    request = message_class(_APIS + PREDICT.module, "PredictRequest")(output_filter=outputs)
    _fill_spec(request.model_spec, model, version, label)
    request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        tensors.fill_proto(request.inputs[alias], as_array(value), as_content=True)
    return request


def predict_outputs(response: Any) -> dict[str, Array]:
    """The arrays of a PredictResponse by alias."""
    return {alias: tensors.array_from_proto(proto) for alias, proto in response.outputs.items()}


def status_request(model: str, version: int | None) -> Any:
    """A GetModelStatusRequest."""
    request = message_class(_APIS + STATUS.module, "GetModelStatusRequest")()
    _fill_spec(request.model_spec, model, version, None)
    return request


def reload_request(config: Any) -> Any:
    """A ReloadConfigRequest with a ModelServerConfig message."""
    request = message_class(_APIS + RELOAD.module, "ReloadConfigRequest")()
    request.config.CopyFrom(config)
    return request


def statuses(response: Any) -> list[VersionStatus]:
    """The versions in a GetModelStatusResponse."""
    return [
        VersionStatus(
            entry.version,
            type(entry).DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[entry.state].name,
            Code(entry.status.error_code).name,
            entry.status.error_message,
        )
        for entry in response.model_version_status
    ]


def metadata_request(model: str, version: int | None, label: str | None = None) -> Any:
    """A GetModelMetadataRequest.

    Raises:
        ServingError: a version and a label are given.
    """
    request = message_class(_APIS + METADATA.module, "GetModelMetadataRequest")(
        metadata_field=["signature_def"]
    )
    _fill_spec(request.model_spec, model, version, label)
    return request


def signatures(response: Any) -> dict[str, Signature]:
    """The signatures in a GetModelMetadataResponse by name."""
    packed = message_class(_APIS + METADATA.module, "SignatureDefMap")()
    response.metadata["signature_def"].Unpack(packed)
    return {
        name: Signature(
            definition.method_name,
            {alias: _spec_from_proto(info) for alias, info in definition.inputs.items()},
            {alias: _spec_from_proto(info) for alias, info in definition.outputs.items()},
        )
        for name, definition in packed.signature_def.items()
    }


def _fill_spec(spec: Any, model: str, version: int | None, label: str | None) -> None:
    spec.name = model
    if version is not None and label is not None:
        raise ServingError("give a version or a label, not both")
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def _spec_from_proto(info: Any) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(tensors.DTYPE_NAMES.get(info.dtype, str(info.dtype)), shape)
