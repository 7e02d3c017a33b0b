"""Warm-up files: what is replayed and how often, what ends a load, what is passed over."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from isthmus.serving import warmup
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.loading import Loader
from isthmus.serving.metrics import Metrics
from isthmus.serving.savedmodel import SavedModel, SessionOptions
from isthmus.serving.status import Code


class Counted(SavedModel):
    """A SavedModel that remembers what was fetched."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        super().__init__(path, options)
        self.fetched: list[Sequence[str]] = []

    def run(self, feeds: Any, fetches: Any, *, timeout_ms: int = 0) -> list[np.ndarray]:
        """Remember, then run."""
        self.fetched.append(tuple(fetches))
        return super().run(feeds, fetches, timeout_ms=timeout_ms)


@pytest.fixture
def version(models_root: Path, tmp_path: Path) -> Path:
    """A copy of half_plus_two, which has signatures for every API."""
    copy = tmp_path / "half_plus_two" / "123"
    shutil.copytree(models_root / "half_plus_two" / "00000123", copy)
    return copy


@pytest.fixture
def model(version: Path) -> Iterator[Counted]:
    """It, loaded."""
    loaded = Counted(version, SessionOptions())
    yield loaded
    loaded.close()


def predict_log(value: float = 2.0) -> Any:
    """A Predict of serving_default."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[value]], tf.float32))
    return log


def with_example(request: Any) -> None:
    """Add the example x = 2 to a request's input."""
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(2.0)


def example_log(kind: str, signature: str) -> Any:
    """A Classify or Regress of one example."""
    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, f"{kind}_log").request
    request.model_spec.name, request.model_spec.signature_name = "half_plus_two", signature
    with_example(request)
    return log


def multi_inference_log() -> Any:
    """A MultiInference of a classification and a regression."""
    log = prediction_log_pb2.PredictionLog()
    request = log.multi_inference_log.request
    for kind in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "half_plus_two", f"{kind}_x_to_y"
    with_example(request)
    return log


def streamed_log() -> Any:
    """A PredictStreamed, an API that the server does not have."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_streamed_log.request.add()
    return log


def write(version: Path, *logs: Any) -> None:
    """Put the records into the version's warm-up file."""
    path = version / warmup.WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def test_every_api_is_replayed_and_other_records_are_passed_over(version: Path, model: Counted) -> None:
    logs = [
        predict_log(),
        example_log("classify", "classify_x_to_y"),
        example_log("regress", "regress_x_to_y2"),
        multi_inference_log(),
        prediction_log_pb2.PredictionLog(),
        streamed_log(),
    ]
    write(version, *logs)
    assert warmup.replay(model, num_iterations=2) == 6
    assert model.fetched == [*[("y:0",)] * 4, *[("y2:0",)] * 2, *[("y:0",)] * 2]


def test_a_session_run_is_unimplemented(version: Path, model: Counted) -> None:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.SetInParent()
    write(version, log)
    with pytest.raises(RequestError) as caught:
        warmup.replay(model)
    # 5 is session_run_log's number in the message, as the original says it.
    assert str(caught.value) == "UNIMPLEMENTED: Unsupported log_type for warmup: 5"


def test_a_request_that_fails_ends_it(version: Path, model: Counted) -> None:
    write(version, predict_log(), example_log("regress", "nope"), predict_log())
    with pytest.raises(RequestError, match="No signature was found with the name: nope"):
        warmup.replay(model)
    assert len(model.fetched) == 1


def test_at_most_a_thousand_records(version: Path, model: Counted) -> None:
    write(version, *[predict_log()] * 1000)
    assert warmup.replay(model) == 1000
    write(version, *[predict_log()] * 1001)
    with pytest.raises(RequestError) as caught:
        warmup.replay(model)
    path = version / warmup.WARMUP_FILE
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"Number of warmup records exceeds the maximum (1000) at {path}"


def test_what_is_no_warm_up_file(version: Path, model: Counted) -> None:
    assert warmup.replay(model) == 0
    path = version / warmup.WARMUP_FILE
    path.parent.mkdir()
    path.write_bytes(b"no records at all")
    with pytest.raises(
        RequestError, match=r"Please verify your warmup data is in TFRecord format\."
    ) as caught:
        warmup.replay(model)
    assert caught.value.code is Code.DATA_LOSS
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"malformed_record")
    with pytest.raises(RequestError, match="Failed to parse warmup record") as caught:
        warmup.replay(model)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("options", "num_runs"),
    [
        ({}, 2),
        ({"num_request_iterations_for_warmup": 3}, 6),
        ({"enable_model_warmup": False}, 0),
    ],
)
def test_the_flags(
    version: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], num_runs: int
) -> None:
    monkeypatch.setattr("isthmus.serving.loading.SavedModel", Counted)
    write(version, predict_log(), predict_log())
    config = ServingConfig(**options, max_image_pixels=0)
    loaded = Loader(config, None, Metrics())("half_plus_two", 123, version)
    assert isinstance(loaded, Counted)
    assert len(loaded.fetched) == num_runs
    loaded.close()


def test_a_failing_warm_up_is_ignored_without_warm_up(version: Path) -> None:
    write(version, example_log("regress", "nope"))
    with pytest.raises(RequestError, match="No signature was found with the name: nope"):
        Loader(ServingConfig(), None, Metrics())("half_plus_two", 123, version)
    Loader(ServingConfig(enable_model_warmup=False), None, Metrics())("half_plus_two", 123, version).close()
