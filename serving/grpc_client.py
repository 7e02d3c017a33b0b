"""The gRPC client."""

from collections.abc import Mapping, Sequence
from typing import Any

from isthmus.serving import tensors
from isthmus.serving.client_base import Array, Client, Signature, TensorSpec, VersionStatus, as_array
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code
from isthmus.serving.wire_messages import message_class

__all__ = ["GrpcClient"]

_APIS = "tensorflow_serving.apis."
_MAX_MESSAGE_BYTES = 2**31 - 1


class GrpcClient(Client):
    """A client of the gRPC API; safe to share between threads.

    Args:
        host: name or address of the server.
        port: its gRPC port.
        timeout_s: time limit of one call.
        credentials: grpc.ssl_channel_credentials(…) for a server with TLS.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 8500, timeout_s: float = 30.0, credentials: Any = None
    ) -> None:
        import grpc

        self._timeout_s = timeout_s
        address, options = (
            f"{host}:{port}",
            [
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ],
        )
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Outputs by alias of one Predict call.

        Args:
            model: the model's name.
            inputs: arrays, or what numpy makes arrays of, by input alias; bytes and text become strings.
            signature: which one; "" is serving_default.
            version: which one; by default the newest available.
            label: a version label instead of a version.
            outputs: aliases to compute; all by default.
            timeout_s: time limit of this call instead of the client's.

        Raises:
            RequestError: what the server answered, or DEADLINE_EXCEEDED, or UNAVAILABLE when there is no
                server.
        """
        request = message_class(_APIS + "predict_pb2", "PredictRequest")(output_filter=outputs)
        _fill_spec(request.model_spec, model, version, label)
        request.model_spec.signature_name = signature
        for alias, value in inputs.items():
            tensors.fill_proto(request.inputs[alias], as_array(value), as_content=True)
        response = self._call(
            "PredictionService/Predict", "predict_pb2", request, "PredictResponse", timeout_s
        )
        return {alias: tensors.array_from_proto(proto) for alias, proto in response.outputs.items()}

    def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        module = "get_model_status_pb2"
        request = message_class(_APIS + module, "GetModelStatusRequest")()
        _fill_spec(request.model_spec, model, version, None)
        response = self._call("ModelService/GetModelStatus", module, request, "GetModelStatusResponse")
        return _statuses(response)

    def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """The model's signatures by name.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        module = "get_model_metadata_pb2"
        request = message_class(_APIS + module, "GetModelMetadataRequest")(metadata_field=["signature_def"])
        _fill_spec(request.model_spec, model, version, None)
        response = self._call(
            "PredictionService/GetModelMetadata", module, request, "GetModelMetadataResponse"
        )
        signatures = message_class(_APIS + module, "SignatureDefMap")()
        response.metadata["signature_def"].Unpack(signatures)
        return {name: _signature(definition) for name, definition in signatures.signature_def.items()}

    def _call(
        self, method: str, module: str, request: Any, response_name: str, timeout_s: float | None = None
    ) -> Any:
        import grpc

        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_class(_APIS + module, response_name).FromString,
        )
        try:
            return call(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise RequestError(Code(error.code().value[0]), error.details() or "") from error


def _fill_spec(spec: Any, model: str, version: int | None, label: str | None) -> None:
    spec.name = model
    if version is not None and label is not None:
        raise ServingError("give a version or a label, not both")
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def _statuses(response: Any) -> list[VersionStatus]:
    states = response.model_version_status
    return [
        VersionStatus(
            entry.version,
            type(entry).DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[entry.state].name,
            Code(entry.status.error_code).name,
            entry.status.error_message,
        )
        for entry in states
    ]


def _signature(definition: Any) -> Signature:
    return Signature(
        definition.method_name,
        {alias: _spec_from_proto(info) for alias, info in definition.inputs.items()},
        {alias: _spec_from_proto(info) for alias, info in definition.outputs.items()},
    )


def _spec_from_proto(info: Any) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(tensors.DTYPE_NAMES.get(info.dtype, str(info.dtype)), shape)
