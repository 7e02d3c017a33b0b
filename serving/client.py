"""A small client of TensorFlow Serving's API: numpy in, numpy out, over gRPC or REST.

    with GrpcClient(port=8500) as client:
        client.predict("digits", {"image_bytes": [Path("seven.png").read_bytes()]})["label"]

Works against the embedded server and against stock TensorFlow Serving. It does not import tensorflow
(`wire_messages` says how), so it starts in a fraction of a second.
"""

import base64
import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np

from isthmus.serving import tensors
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code, code_of_http_status
from isthmus.serving.wire_messages import message_class

__all__ = ["GrpcClient", "RestClient", "Signature", "TensorSpec", "VersionStatus"]

Array = np.ndarray[Any, Any]

_APIS = "tensorflow_serving.apis."
_MAX_MESSAGE_BYTES = 2**31 - 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature."""

    dtype: str
    """TensorFlow's name of it, such as float, int64, string."""

    shape: tuple[int, ...] | None
    """-1 where the size is not fixed; None when the rank is unknown."""


@dataclass(frozen=True)
class Signature:
    """One signature of a served model, by input and output alias."""

    method_name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END, and what went wrong ("" when
    nothing)."""

    version: int
    state: str
    error_code: str
    error_message: str


class _Client:
    """What both wires share."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        raise NotImplementedError

    def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first."""
        raise NotImplementedError

    def wait_until_available(self, model: str, *, timeout_s: float = 60.0) -> int:
        """The newest available version of a model, waiting for it if need be.

        Raises:
            ServingError: none was available in time; the text has the last answer.
        """
        deadline = time.monotonic() + timeout_s
        last = "no answer"
        while True:
            try:
                versions = self.status(model)
                available = [status.version for status in versions if status.state == "AVAILABLE"]
                if available:
                    return max(available)
                last = ", ".join(f"{s.version}: {s.state} {s.error_message}".strip() for s in versions)
            except RequestError as error:
                last = str(error)
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"no version of {model!r} became available within {timeout_s:g} s ({last})"
                )
            time.sleep(0.1)


class GrpcClient(_Client):
    """A client of the gRPC API; safe to share between threads.

    Args:
        host: name or address of the server.
        port: its gRPC port.
        timeout_s: time limit of one call.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 8500, timeout_s: float = 30.0) -> None:
        import grpc

        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            f"{host}:{port}",
            options=[
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ],
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


class RestClient(_Client):
    """A client of the REST API; safe to share between threads (each has a connection of its own).

    Args:
        host: name or address of the server.
        port: its REST port.
        timeout_s: time limit of one call.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 8501, timeout_s: float = 30.0) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._signatures: dict[tuple[str, int | None, str | None], dict[str, Signature]] = {}

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Outputs by alias of one predict request in column format; arguments as `GrpcClient.predict`.

        The answer's dtypes come from the model's metadata, asked for once.

        Raises:
            RequestError: what the server answered, or UNAVAILABLE when there is none.
        """
        key = (model, version, label)
        if key not in self._signatures:
            self._signatures[key] = self._metadata(_path(model, version, label))
        name = signature or "serving_default"
        body = json.dumps({"signature_name": name, "inputs": {a: _jsonable(v) for a, v in inputs.items()}})
        path = _path(model, version, label) + ":predict"
        answer = json.loads(self.request("POST", path, body.encode(), timeout_s=timeout_s))["outputs"]
        specs = self._signatures[key][name].outputs
        if len(specs) == 1:
            answer = {next(iter(specs)): answer}
        return {alias: _from_json(value, specs[alias]) for alias, value in answer.items()}

    def status(self, model: str, *, version: int | None = None) -> list[VersionStatus]:
        """State of the model's versions, newest first.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        answer = json.loads(self.request("GET", _path(model, version, None)))
        return [
            VersionStatus(
                int(entry["version"]),
                entry["state"],
                entry["status"]["error_code"],
                entry["status"]["error_message"],
            )
            for entry in answer["model_version_status"]
        ]

    def metadata(self, model: str, *, version: int | None = None) -> dict[str, Signature]:
        """The model's signatures by name.

        Raises:
            RequestError: NOT_FOUND for an unknown model.
        """
        return self._metadata(_path(model, version, None))

    def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """One raw request; the body of the answer.

        Raises:
            RequestError: any status but 200, with the API's error text; UNAVAILABLE when there is no server.
        """
        connection = self._connection(self._timeout_s if timeout_s is None else timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            self.close()
            raise RequestError(Code.DEADLINE_EXCEEDED, f"no answer to {method} {path} in time") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            host, port = self._address
            raise RequestError(Code.UNAVAILABLE, f"no server answers on {host}:{port}: {error}") from error
        if response.status != 200:
            raise RequestError(code_of_http_status(response.status), _error_text(content, response.status))
        return content

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(*self._address, timeout=timeout_s)
            self._local.connection = connection
        elif connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection

    def _metadata(self, path: str) -> dict[str, Signature]:
        answer = json.loads(self.request("GET", path + "/metadata"))
        definitions = answer["metadata"]["signature_def"]["signature_def"]
        return {
            name: Signature(
                definition["method_name"],
                {alias: _spec_from_json(info) for alias, info in definition["inputs"].items()},
                {alias: _spec_from_json(info) for alias, info in definition["outputs"].items()},
            )
            for name, definition in definitions.items()
        }


def as_array(value: Any) -> Array:
    """An input value as an array: text and bytes as objects, Python floats as float32, Python ints as they
    are."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bytes | str):
        return np.array(value, object)
    array = np.asarray(value)
    if array.dtype.kind in "SU":
        # numpy's fixed-width bytes lose trailing zeros: take the values themselves.
        return np.array(value, object)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _fill_spec(spec: Any, model: str, version: int | None, label: str | None) -> None:
    spec.name = model
    if version is not None and label is not None:
        raise ServingError("give a version or a label, not both")
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def _path(model: str, version: int | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise ServingError("give a version or a label, not both")
    path = f"/v1/models/{quote(model, safe='')}"
    if version is not None:
        return f"{path}/versions/{version}"
    return path if label is None else f"{path}/labels/{quote(label, safe='')}"


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


def _spec_from_json(info: Mapping[str, Any]) -> TensorSpec:
    shape = info["tensor_shape"]
    dims = None if shape["unknown_rank"] else tuple(int(dim["size"]) for dim in shape["dim"])
    return TensorSpec(info["dtype"].removeprefix("DT_").lower(), dims)


def _jsonable(value: Any) -> Any:
    array = as_array(value)
    if array.dtype == object:
        return _b64_objects(array.tolist())
    # float32's shortest text, not the float64 that it widens to.
    return array.astype(np.float64).tolist() if array.dtype == np.float16 else _plain(array)


def _plain(array: Array) -> Any:
    if array.dtype != np.float32:
        return array.tolist()
    texts = np.array([float(text) for text in map(str, array.reshape(-1))], np.float64)
    return texts.reshape(array.shape).tolist()


def _b64_objects(value: Any) -> Any:
    if isinstance(value, list):
        return [_b64_objects(element) for element in value]
    data = value.encode() if isinstance(value, str) else value
    return {"b64": base64.b64encode(data).decode()}


def _from_json(value: Any, spec: TensorSpec) -> Array:
    if spec.dtype == "string":
        return np.array(_bytes_of(value), object)
    numbers = {name: number for number, name in tensors.DTYPE_NAMES.items()}
    return np.array(value, tensors.NUMPY_OF_DTYPE[numbers[spec.dtype]])


def _bytes_of(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes_of(element) for element in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def _error_text(content: bytes, status: int) -> str:
    try:
        text = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {content[:200].decode('utf-8', 'replace')}"
    return str(text)
