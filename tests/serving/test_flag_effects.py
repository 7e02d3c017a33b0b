"""What single flags change in an answer or a load."""

import http.client
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc, regression_pb2

from isthmus.serving import flags, inference
from isthmus.serving.client import GrpcClient, RestClient
from isthmus.serving.errors import RequestError
from isthmus.serving.loading import Loader
from isthmus.serving.metrics import Metrics
from isthmus.serving.process import ServerProcess
from isthmus.serving.status import Code

X = np.array([[1.0]], np.float32)
NUM_TRIES = 21
METHODS = "tensorflow/serving/predict, tensorflow/serving/classify, tensorflow/serving/regress"


@pytest.fixture(scope="module")
def base(models_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with version 1 of half_plus_n."""
    base = tmp_path_factory.mktemp("retried")
    shutil.copytree(models_root / "half_plus_n" / "1", base / "1")
    return base


@pytest.fixture(scope="module")
def server(
    models_root: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with the flags: of that base path, of a model with method names, and of one without."""
    folders = {"half": base, **{name: models_root / name for name in ("half_plus_two", "half_plus_two_tf2")}}
    config = tmp_path_factory.mktemp("config") / "models.config"
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder}" model_platform: "tensorflow" }}\n'
        for name, folder in folders.items()
    )
    config.write_text(f"model_config_list {{\n{models}}}\n")
    given = [
        f"--model_config_file={config}",
        "--file_system_poll_wait_seconds=0.1",
        f"--max_num_load_retries={NUM_TRIES - 1}",
        "--load_retry_interval_micros=100000",
        "--rest_api_enable_cors_support",
        "--enable_signature_method_name_check",
    ]
    with ServerProcess("half", base, flags=given) as server:
        yield server


# ---- max_num_load_retries, load_retry_interval_micros ----


def break_version(base: Path, version: str) -> None:
    """Publish a version that cannot be loaded."""
    (base / version).mkdir()
    (base / version / "saved_model.pb").write_bytes(b"no model at all")


def num_failures(server: ServerProcess, version: int) -> int:
    """How often the version was tried in vain."""
    return server.log_path.read_text().count(f"loading half version {version} failed: OUT_OF_RANGE")


def wait_for_state(server: ServerProcess, version: int, state: str) -> str:
    """Until the version is in that state; its error's code."""
    deadline = time.monotonic() + 60
    with RestClient(port=server.rest_port) as client:
        while True:
            found = {status.version: status for status in client.status("half")}.get(version)
            if found is not None and found.state == state:
                return found.error_code
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


def test_a_version_that_never_becomes_readable_is_given_up(server: ServerProcess, base: Path) -> None:
    break_version(base, "2")
    assert wait_for_state(server, 2, "END") == "OUT_OF_RANGE"
    assert num_failures(server, 2) == NUM_TRIES
    shutil.rmtree(base / "2")


def test_a_version_that_becomes_readable_later(server: ServerProcess, base: Path, models_root: Path) -> None:
    break_version(base, "3")
    deadline = time.monotonic() + 60
    while not num_failures(server, 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    whole = models_root / "half_plus_n" / "3"
    shutil.copytree(whole / "variables", base / "3" / "variables")
    shutil.copy(whole / "saved_model.pb", base / "3" / "saved_model.new")
    (base / "3" / "saved_model.new").rename(base / "3" / "saved_model.pb")
    assert wait_for_state(server, 3, "AVAILABLE") == "OK"
    assert 1 <= num_failures(server, 3) < NUM_TRIES
    with GrpcClient(port=server.grpc_port) as client:
        assert client.predict("half", {"x": X[0]})["y"].tolist() == [3.5]


# ---- rest_api_enable_cors_support ----


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("OPTIONS", "/v1/models/half:predict", 200),
        ("GET", "/v1/models/half", 200),
        ("GET", "/v1/models/nope", 404),
    ],
)
def test_cross_origin_requests(server: ServerProcess, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    connection.request(method, path, headers={"Origin": "http://elsewhere.example"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == status
    assert {name.lower(): value for name, value in answer.getheaders()}.items() >= {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers": "Content-Type",
    }.items()
    assert (body == b"") == (method == "OPTIONS")


# ---- enable_signature_method_name_check ----


def test_method_names_are_checked(server: ServerProcess) -> None:
    with GrpcClient(port=server.grpc_port) as client:
        assert client.predict("half_plus_two", {"x": X})["y"].tolist() == [[2.5]]
        with pytest.raises(RequestError) as caught:
            client.predict("half_plus_two_tf2", {"x": X})
    # INTERNAL is the original's code here; for the other APIs it is INVALID_ARGUMENT.
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == (
        f"Expected prediction signature method_name to be one of {{{METHODS}}}. Was: "
    )


def test_method_names_are_checked_for_examples(server: ServerProcess) -> None:
    def regress(model: str, signature: str) -> float:
        request = regression_pb2.RegressionRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(2.0)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return stub.Regress(request, timeout=30).result.regressions[0].value

    assert regress("half_plus_two", "regress_x_to_y") == 3.0
    with pytest.raises(grpc.RpcError) as caught:
        regress("half_plus_two_tf2", "regress_x_to_y")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: "
    )


# ---- saved_model_tags ----


def write_tagged(path: Path) -> None:
    """One SavedModel of two MetaGraphDefs: x + 1 tagged serve, and x + 2 tagged serve and tpu."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(path))
    for tags, addend in ((["serve"], 1.0), (["serve", "tpu"], 2.0)):
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            x = v1.placeholder(tf.float32, [None], name="x")
            signature = v1.saved_model.predict_signature_def({"x": x}, {"y": tf.add(x, addend, name="y")})
            if tags == ["serve"]:
                builder.add_meta_graph_and_variables(session, tags, {"serving_default": signature})
            else:
                builder.add_meta_graph(tags, {"serving_default": signature})
    builder.save()


@pytest.mark.parametrize(("given", "answer"), [([], 2.0), (["--saved_model_tags=serve,tpu"], 3.0)])
def test_tags_choose_the_graph(tmp_path: Path, given: list[str], answer: float) -> None:
    write_tagged(tmp_path / "1")
    model = Loader(flags.parse(given), None, Metrics())("tagged", 1, tmp_path / "1")
    assert inference.predict(model, "", {"x": X[0]})["y"].tolist() == [answer]
    model.close()


def test_tags_that_the_model_does_not_have(tmp_path: Path) -> None:
    write_tagged(tmp_path / "1")
    with pytest.raises(
        RequestError, match=r"Could not find meta graph def matching supplied tags: \{ gpu \}"
    ) as caught:
        Loader(flags.parse(["--saved_model_tags=gpu"]), None, Metrics())("tagged", 1, tmp_path / "1")
    assert caught.value.code is Code.NOT_FOUND
