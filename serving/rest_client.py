"""The REST client."""

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from isthmus.serving import tensors
from isthmus.serving.client_base import Array, Client, Signature, TensorSpec, VersionStatus, as_array
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.retries import RetryPolicy, call_with_retries
from isthmus.serving.status import Code, code_of_http_status

__all__ = ["RestClient"]

_RETRY = RetryPolicy()


class RestClient(Client):
    """A client of the REST API; safe to share between threads (calls at the same time have a connection each).

    Args:
        host: name or address of the server.
        port: its REST port.
        timeout_s: time limit of one call, its retries included.
        tls: an ssl.SSLContext that trusts the server, for one with TLS.
        token: for a server that wants an API token.
        retry: when a predict is tried again.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8501,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        retry: RetryPolicy = _RETRY,
    ) -> None:
        self._address = (host, port)
        self._timeout_s, self._retry = timeout_s, retry
        self._tls = tls
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._idle: list[http.client.HTTPConnection] = []
        self._signatures: dict[tuple[str, int | None, str | None], dict[str, Signature]] = {}

    def close(self) -> None:
        """Close the connections that no call is using."""
        while self._idle:
            self._idle.pop().close()

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
        content = call_with_retries(
            lambda left_s: self.request("POST", path, body.encode(), timeout_s=left_s),
            self._retry,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )
        answer = json.loads(content)["outputs"]
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
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, self._headers | kind)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            connection.close()
            raise RequestError(Code.DEADLINE_EXCEEDED, f"no answer to {method} {path} in time") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            host, port = self._address
            raise RequestError(Code.UNAVAILABLE, f"no server answers on {host}:{port}: {error}") from error
        self._idle.append(connection)
        if response.status != 200:
            raise RequestError(code_of_http_status(response.status), _error_text(content, response.status))
        return content

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        try:
            connection = self._idle.pop()
        except IndexError:
            if self._tls is None:
                return http.client.HTTPConnection(*self._address, timeout=timeout_s)
            return http.client.HTTPSConnection(*self._address, timeout=timeout_s, context=self._tls)
        if connection.sock is not None:
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


def _path(model: str, version: int | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise ServingError("give a version or a label, not both")
    path = f"/v1/models/{quote(model, safe='')}"
    if version is not None:
        return f"{path}/versions/{version}"
    return path if label is None else f"{path}/labels/{quote(label, safe='')}"


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
