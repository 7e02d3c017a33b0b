"""What a server writes about its requests: access log, prediction log, batching metrics; and health's Watch."""

import json
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from isthmus.serving.access_log import AccessLog
from isthmus.serving.background_writer import BackgroundWriter
from isthmus.serving.client import GrpcClient, RestClient
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.prediction_log import PredictionLog
from isthmus.serving.process import ServerProcess

X = np.array([1.0, 2.0, 3.0], np.float32)


def story(server: ServerProcess) -> list[bytes]:
    """Three requests that succeed and two that do not; what a health watcher sees until the server stops."""
    seen: list[bytes] = []

    def watch() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
            try:
                seen.extend(stream)
            except grpc.RpcError as error:
                seen.append(str(error.code()).encode())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with GrpcClient(port=server.grpc_port) as client, RestClient(port=server.rest_port) as rest:
        client.predict("half", {"x": X})
        client.predict("half", {"x": X[:2]})
        rest.predict("half", {"x": X})
        with pytest.raises(RequestError):
            client.predict("nope", {"x": X})
        with pytest.raises(RequestError):
            rest.request("POST", "/v1/models/half:predict", b"{")
        assert server.admin_port is not None
        with RestClient(port=server.admin_port) as admin:
            page = admin.request("GET", "/metrics").decode()
    model = 'model_path="' + str(server.base_path / "3") + '"'
    assert f":tensorflow:serving:batching:input_batch_size_count{{{model}}} 3" in page
    assert f':tensorflow:serving:batching:processed_batch_size_bucket{{{model},le="4"}} 0' in page
    assert f':tensorflow:serving:batching:processed_batch_size_bucket{{{model},le="8"}} 3' in page
    assert f":tensorflow:serving:batching:batch_delay_us_count{{{model}}} 3" in page
    assert f":isthmus:serving:batching:requests_waiting{{{model}}} 0" in page
    time.sleep(0.2)
    server.stop()
    watcher.join(30)
    return seen


def test_logs_of_a_server(models_root: Path, tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 } allowed_batch_sizes: 5 allowed_batch_sizes: 8")
    flags = [
        f"--access_log_file={tmp_path / 'logs' / 'access.jsonl'}",
        f"--prediction_log_folder={tmp_path / 'predictions'}",
        "--prediction_log_sampling_rate=1",
        "--enable_batching",
        f"--batching_parameters_file={batching}",
        "--enable_grpc_healthcheck_service",
        "--admin_port=0",
    ]
    with ServerProcess("half", models_root / "half_plus_n", flags=flags) as server:
        seen = story(server)
    assert seen[:2] == [b"\x08\x01", b"\x08\x02"]

    lines = [json.loads(line) for line in (tmp_path / "logs" / "access.jsonl").read_text().splitlines()]
    told = [(line["wire"], line["method"], line["path"], line["status"]) for line in lines]
    assert told == [
        ("GRPC", "Predict", "half", "OK"),
        ("GRPC", "Predict", "half", "OK"),
        ("REST", "GET", "/v1/models/half/metadata", "OK"),
        ("REST", "POST", "/v1/models/half:predict", "OK"),
        ("GRPC", "Predict", "nope", "NOT_FOUND"),
        ("REST", "POST", "/v1/models/half:predict", "INVALID_ARGUMENT"),
    ]
    assert lines[5]["http_status"] == 400
    assert lines[5]["bytes_in"] == 1
    assert all(line["duration_ms"] > 0 and line["bytes_out"] > 0 for line in lines[:4])
    assert lines[0]["peer"].startswith("ipv4:127.0.0.1:")

    (file,) = (tmp_path / "predictions").iterdir()
    assert file.suffix == ".tfrecord"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    answers = [tf.make_ndarray(log.predict_log.response.outputs["y"]).tolist() for log in logs]
    assert answers == [[3.5, 4.0, 4.5], [3.5, 4.0], [3.5, 4.0, 4.5]]
    assert [tf.make_ndarray(log.predict_log.request.inputs["x"]).shape for log in logs] == [(3,), (2,), (3,)]
    assert {log.log_metadata.model_spec.version.value for log in logs} == {3}
    assert {log.log_metadata.sampling_config.sampling_rate for log in logs} == {1.0}


def test_classify_and_regress_are_logged_alike_on_both_wires(models_root: Path, tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, prediction_log_pb2, regression_pb2

    flags = [f"--prediction_log_folder={tmp_path}", "--prediction_log_sampling_rate=1"]
    calls = [
        ("Classify", classification_pb2.ClassificationRequest()),
        ("Regress", regression_pb2.RegressionRequest()),
    ]
    with (
        ServerProcess("half", models_root / "half_plus_two", flags=flags) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        RestClient(port=server.rest_port) as rest,
    ):
        for method, request in calls:
            signature = f"{method.lower()}_x_to_y"
            request.model_spec.name, request.model_spec.signature_name = "half", signature
            request.model_spec.version.value = 123
            feature = request.input.example_list.examples.add().features.feature["x"]
            feature.float_list.value.append(2.0)
            call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
            call(request.SerializeToString(), timeout=30)
            body = json.dumps({"signature_name": signature, "examples": [{"x": 2.0}]})
            rest.request("POST", f"/v1/models/half:{method.lower()}", body.encode())
    (file,) = tmp_path.iterdir()
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert [log.WhichOneof("log_type") for log in logs] == ["classify_log"] * 2 + ["regress_log"] * 2
    assert logs[0] == logs[1]
    assert logs[2] == logs[3]
    assert logs[1].classify_log.response.result.classifications[0].classes[0].score == 3.0
    assert logs[3].regress_log.response.result.regressions[0].value == 3.0


def test_every_call_leaves_a_line(models_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alpha\n")
    log = tmp_path / "access.jsonl"
    flags = [
        f"--access_log_file={log}",
        f"--api_token_file={tmp_path / 'tokens'}",
        "--reload_config_from=nowhere",
    ]
    with ServerProcess("half", models_root / "half_plus_n", flags=flags) as server:
        with GrpcClient(port=server.grpc_port, token="alpha") as client:
            client.status("half")
            client.metadata("half")
            with pytest.raises(RequestError):
                client.status("nope")
        with GrpcClient(port=server.grpc_port, token="beta") as client, pytest.raises(RequestError):
            client.predict("half", {"x": X})
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            for service, data in (
                ("ModelService/HandleReloadConfigRequest", b""),
                ("PredictionService/Classify", b"\xff"),
            ):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(f"/tensorflow.serving.{service}")(
                        data, metadata=[("authorization", "Bearer alpha")]
                    )
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GetModelStatus", "half", "OK"),
        ("GetModelMetadata", "half", "OK"),
        ("GetModelStatus", "nope", "NOT_FOUND"),
        ("Predict", "", "UNAUTHENTICATED"),
        ("HandleReloadConfigRequest", "", "PERMISSION_DENIED"),
        ("Classify", "", "INTERNAL"),
    ]
    assert [line["bytes_out"] > 0 for line in lines] == [True, True, False, False, False, False]
    assert lines[3]["bytes_in"] > lines[5]["bytes_in"] == 1


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    log = AccessLog(Path("/dev/full"))
    for _ in range(5):
        log.request(wire="REST", peer="", method="GET", path="/", duration_ms=1.0)
    log.stop()
    assert (log._writer.num_written, log._writer.num_lost >= 5) == (0, True)


def test_a_moved_access_log_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path)
    log.request(wire="REST", peer="", method="GET", path="/1", duration_ms=1.0)
    while log._writer.num_written < 1:
        time.sleep(0.01)
    path.rename(tmp_path / "old")
    log.request(wire="REST", peer="", method="GET", path="/" + "2" * 9999, duration_ms=1.0)
    log.stop()
    assert json.loads((tmp_path / "old").read_text())["path"] == "/1"
    assert len(json.loads(path.read_text())["path"]) == 512


def test_a_slow_disk_holds_up_nobody() -> None:
    release, written = threading.Event(), list[int]()

    def write(item: int) -> None:
        release.wait(10)
        written.append(item)

    writer = BackgroundWriter("test", write, lambda: None, max_waiting=10)
    started = time.monotonic()
    for item in range(1000):
        writer.offer(item)
    assert time.monotonic() - started < 1.0
    release.set()
    writer.stop()
    assert writer.num_lost >= 989
    assert len(written) + writer.num_lost == 1000


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="cannot write the access log /proc/x/y: "):
        AccessLog(Path("/proc/x/y"))
    with pytest.raises(ServingError, match="cannot make the prediction log's folder /proc/x: "):
        PredictionLog(Path("/proc/x"), 0.5)
    with pytest.raises(ServingError, match="must lie between 0 and 1; got 2"):
        PredictionLog(tmp_path, 2.0)
