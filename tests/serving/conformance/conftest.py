"""The conformance suite runs against any server that serves the models of ../models.py (how: see there).

pytest tests/serving/conformance                               the embedded server
pytest tests/serving/conformance --target=localhost:8500:8501  a real tensorflow_model_server
"""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from isthmus.serving.process import ServerProcess


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--target=embedded` or `--target=host:grpc_port:rest_port`; `--server=PROGRAM`."""
    parser.addoption(
        "--target", default="embedded", help="embedded, or host:grpc_port:rest_port of a real server"
    )
    parser.addoption("--server", default="", help="program of a real server, for tests that start one")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value; NaN and Infinity literals are numbers."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The API's error text."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        text: str = self.json["error"]
        return text


class Target:
    """The server under test."""

    def __init__(self, host: str, grpc_port: int, rest_port: int) -> None:
        self.host, self.grpc_port, self.rest_port = host, grpc_port, rest_port
        self.channel = grpc.insecure_channel(f"{host}:{grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One HTTP request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.rest_port, timeout=30)
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, headers or {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """GET."""
        return self.request("GET", path)

    def post(self, path: str, body: Any) -> Answer:
        """POST of a JSON value, or of a text that is sent as it is."""
        return self.request("POST", path, body if isinstance(body, str | bytes) else json.dumps(body))

    def predict(self, model: str, inputs: dict[str, Any], **spec: Any) -> Any:
        """A gRPC Predict; inputs are numpy arrays or TensorProtos."""
        import tensorflow as tf

        request = predict_pb2.PredictRequest(output_filter=spec.pop("output_filter", ()))
        request.model_spec.name = model
        request.model_spec.signature_name = spec.pop("signature", "")
        if "version" in spec:
            request.model_spec.version.value = spec["version"]
        if "label" in spec:
            request.model_spec.version_label = spec["label"]
        for name, value in inputs.items():
            proto = tf.make_tensor_proto(value) if isinstance(value, np.ndarray) else value
            request.inputs[name].CopyFrom(proto)
        return self.prediction.Predict(request, timeout=30)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, models_root: Path) -> Iterator[Target]:
    """The server that `--target` names."""
    named = request.config.getoption("--target", default="embedded")
    if named != "embedded":
        host, grpc_port, rest_port = named.split(":")
        yield Target(host, int(grpc_port), int(rest_port))
        return
    flags = [
        f"--model_config_file={models_root / 'models.config'}",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_grpc_healthcheck_service=true",
    ]
    with ServerProcess("echo", models_root / "echo", flags=flags) as server:
        yield Target(server.host, server.grpc_port, server.rest_port)


@pytest.fixture
def grpc_error() -> Callable[..., tuple[str, str]]:
    """Calls something that must fail over gRPC; gives the status code's name and the text."""

    def run(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            call(*args, **kwargs)
        return caught.value.code().name, caught.value.details()

    return run
