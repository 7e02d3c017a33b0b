"""What tensorflow_model_server_test.py does, TensorFlow Serving's own end-to-end test: servers started by their
flags, asked for a half plus two. Its cases that need no flag of their own stand in the other files here.

pytest tests/serving/conformance/test_model_server.py                                  the embedded server
pytest tests/serving/conformance/test_model_server.py --server=tensorflow_model_server  a real one
"""

import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)


def config_of(root: Path, *names: str) -> str:
    """A model_config_file's text."""
    models = "".join(
        f'config: {{ name: "{name}", base_path: "{root / name}", model_platform: "tensorflow" }}\n'
        for name in names
    )
    return f"model_config_list: {{\n{models}}}\n"


@dataclass
class Started:
    """A server that was started by its flags."""

    process: subprocess.Popen[bytes]
    grpc_address: str
    rest_port: int
    folder: Path

    def predict(
        self, model: str, *, address: str | None = None, signature: str = "", shape: tuple[int, ...] = (1,)
    ) -> tuple[float, int]:
        """What a Predict of 2.0 gives, and which version answered."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        request.inputs["x"].dtype = 1
        request.inputs["x"].float_val.append(2.0)
        for size in shape:
            request.inputs["x"].tensor_shape.dim.add(size=size)
        with grpc.insecure_channel(address or self.grpc_address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            response = stub.Predict(request, timeout=10)
        assert response.model_spec.signature_name == (signature or "serving_default")
        (output,) = response.outputs.values()
        (value,) = output.float_val
        return value, response.model_spec.version.value

    def get(self, path: str) -> str:
        """A page of the REST port."""
        connection = http.client.HTTPConnection("localhost", self.rest_port, timeout=10)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text


def command(request: pytest.FixtureRequest) -> list[str]:
    """The program under test: `--server`, or the embedded one."""
    given = request.config.getoption("--server")
    return shlex.split(given) if given else [sys.executable, "-m", "isthmus.serving"]


def unused_port() -> int:
    """As the original's test picks it."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_ready(started: Started) -> None:
    """Until a model that is not there is answered `Servable not found …`."""
    deadline = time.monotonic() + 60
    while True:
        try:
            started.predict("intentionally_missing_model")
        except grpc.RpcError as error:
            if "Servable" in error.details():
                return
        assert started.process.poll() is None, (started.folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def start(request: pytest.FixtureRequest, folder: Path, *flags: str) -> Started:
    """A server that answers."""
    port, rest_port = unused_port(), unused_port()
    ports = [f"--port={port}", f"--rest_api_port={rest_port}", "--rest_api_timeout_in_ms=5000"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command(request), *ports, *flags], stdout=log, stderr=log)
    started = Started(process, f"localhost:{port}", rest_port, folder)
    request.addfinalizer(process.wait)
    request.addfinalizer(process.terminate)
    wait_until_ready(started)
    return started


@pytest.fixture(scope="module")
def everything(
    request: pytest.FixtureRequest, models_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Started:
    """A server with batching, a socket, Prometheus and channel arguments, that polls its configuration."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "models.config").write_text(config_of(models_root, "half_plus_two"))
    (folder / "batching.config").write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 0 }\n"
    )
    (folder / "monitoring.config").write_text(
        'prometheus_config: { enable: true, path: "/monitoring/prometheus/metrics" }'
    )
    return start(
        request,
        folder,
        f"--model_config_file={folder / 'models.config'}",
        "--model_config_file_poll_wait_seconds=1",
        "--enable_batching",
        f"--batching_parameters_file={folder / 'batching.config'}",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
        f"--grpc_socket_path={folder / 'socket'}",
    )


def test_predict_in_batches(everything: Started) -> None:
    assert everything.predict("half_plus_two") == (3.0, 123)


def test_predict_on_a_unix_socket(everything: Started) -> None:
    address = f"unix:{everything.folder / 'socket'}"
    assert everything.predict("half_plus_two", address=address) == (3.0, 123)


def test_prometheus(everything: Started) -> None:
    assert "# TYPE :tensorflow:serving:request_count counter" in everything.get(
        "/monitoring/prometheus/metrics"
    )


def test_profiler(everything: Started, tmp_path: Path) -> None:
    """TensorFlow's own client, while requests are answered."""
    program = (
        "import sys, tensorflow as tf; "
        "tf.profiler.experimental.client.trace(sys.argv[1], sys.argv[2], 1500, num_tracing_attempts=3)"
    )
    address = everything.grpc_address.replace("localhost", "127.0.0.1")
    tracing = subprocess.Popen([sys.executable, "-c", program, f"grpc://{address}", str(tmp_path)])
    while tracing.poll() is None:
        everything.predict("half_plus_two")
    assert tracing.returncode == 0
    (profile,) = tmp_path.rglob("*.xplane.pb")
    assert b"TfOpRun" in profile.read_bytes() or b"SessionRun" in profile.read_bytes()


def test_a_rewritten_configuration_is_polled(everything: Started, models_root: Path) -> None:
    """Last: half_plus_two is gone afterwards."""
    config = everything.folder / "models.config"
    config.write_text(config_of(models_root, "half_plus_n"))
    deadline = time.monotonic() + 20
    while True:
        try:
            answer = everything.predict("half_plus_n")
            break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    assert answer == (4.0, 3)


@pytest.fixture(scope="module")
def other(
    request: pytest.FixtureRequest, models_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Started:
    """A server of models that TF2 and Keras saved, with nothing but defaults."""
    folder = tmp_path_factory.mktemp("other")
    names = ("half_plus_two_tf2", "saved_by_tf2", "checkpoint", "mirrored_keras")
    (folder / "models.config").write_text(config_of(models_root, *names))
    return start(request, folder, f"--model_config_file={folder / 'models.config'}")


@pytest.mark.parametrize("model", ["half_plus_two_tf2", "saved_by_tf2"])
def test_tf2_classify_regress_and_both(other: Started, model: str) -> None:
    with grpc.insecure_channel(other.grpc_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classify = classification_pb2.ClassificationRequest()
        regress, both = regression_pb2.RegressionRequest(), inference_pb2.MultiInferenceRequest()
        kinds = (("regress", regress.model_spec), ("classify", classify.model_spec))
        for kind, spec in kinds:
            spec.name, spec.signature_name = model, f"{kind}_x_to_y"
            both.tasks.add(model_spec=spec, method_name=f"tensorflow/serving/{kind}")
        for asked in (classify, regress, both):
            example = asked.input.example_list.examples.add()
            example.features.feature["x"].float_list.value.append(2.0)
        (classification,) = stub.Classify(classify, timeout=10).result.classifications
        assert [(c.label, c.score) for c in classification.classes] == [("", 3.0)]
        assert [r.value for r in stub.Regress(regress, timeout=10).result.regressions] == [3.0]
        if model == "saved_by_tf2":
            with pytest.raises(grpc.RpcError, match=r"Input tensor must be the same for all Signatures\."):
                stub.MultiInference(both, timeout=10)
            return
        answers = stub.MultiInference(both, timeout=10).results
    assert answers[0].regression_result.regressions[0].value == 3.0
    assert answers[1].classification_result.classifications[0].classes[0].score == 3.0
    assert {(a.model_spec.name, a.model_spec.version.value) for a in answers} == {(model, 123)}


def test_checkpoint_with_several_signatures(other: Started) -> None:
    assert other.predict("checkpoint") == (12.0, 123)
    assert other.predict("checkpoint", signature="custom_signature_key") == (2.0, 123)


def test_keras_with_mirrored_variables(other: Started) -> None:
    assert other.predict("mirrored_keras", shape=(1, 1)) == (2.0, 123)


def test_a_rewritten_configuration_is_not_read_without_polling(other: Started, models_root: Path) -> None:
    config = other.folder / "models.config"
    config.write_text(config_of(models_root, "half_plus_two"))
    time.sleep(2)
    assert other.predict("checkpoint") == (12.0, 123)
    with pytest.raises(grpc.RpcError, match="Servable not found for request: Latest"):
        other.predict("half_plus_two")


def test_bad_configuration(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    config = tmp_path / "bad.config"
    config.write_text("improperly formatted file")
    run = subprocess.run(
        [*command(request), f"--model_config_file={config}", "--port=0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in run.stderr
    assert os.fspath(config) in run.stderr


def test_version(request: pytest.FixtureRequest) -> None:
    run = subprocess.run(
        [*command(request), "--version"], check=True, capture_output=True, text=True, timeout=60
    )
    first, second = run.stdout.splitlines()
    assert first.startswith("TensorFlow ModelServer: 2.")
    assert second.startswith("TensorFlow Library: 2.")


def test_status_page(other: Started) -> None:
    assert json.loads(other.get("/v1/models/checkpoint")) == {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
