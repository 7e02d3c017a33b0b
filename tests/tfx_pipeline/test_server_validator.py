"""ServerValidator: the real server process with a good model, a wrong one and one that dies."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from container_engine import FakeEngine
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tfx.types import standard_artifacts

from isthmus.export.config import GateConfig
from isthmus.export.parity import TITLES
from isthmus.lineage.files import canonical_json
from isthmus.serving import warmup
from isthmus.serving.errors import ServingError
from isthmus.serving.metrics import Metrics
from isthmus.serving.process import ServerProcess
from isthmus.tfx_pipeline import server_budgets, server_validator
from isthmus.tfx_pipeline.artifacts import Verdict
from isthmus.tfx_pipeline.config import ServerGate
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.external_server import ExternalServer, image_command
from isthmus.tfx_pipeline.model_artifact import manifest_of, reference_of, saved_model_of

Validate = Callable[..., tuple[Any, Verdict]]


@pytest.fixture
def validate(execute: Callable[..., None], artifact_at: Callable[..., Any], tmp_path: Path) -> Validate:
    """Run the component on a model; returns the blessing and the verdict."""

    def run(model: Any, **gate: Any) -> tuple[Any, Verdict]:
        blessing = artifact_at(standard_artifacts.InfraBlessing, tmp_path / "blessing")
        execute(
            server_validator.Executor,
            inputs={"model": model},
            outputs={"blessing": blessing},
            properties={
                "gate": canonical_json(asdict(ServerGate(**{"num_images": 3, "num_requests": 20, **gate}))),
                "logit_error": 1e-3,
                "top1_agreement": 1.0,
            },
        )
        return blessing, Verdict.read(blessing)

    return run


@pytest.fixture(params=["embedded", "binary", "image"])
def gate(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Where the server comes from. No package has tensorflow_model_server: the embedded one takes its flags."""
    if request.param == "embedded":
        yield {}
    elif request.param == "binary":
        binary = tmp_path / "tensorflow_model_server"
        binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m isthmus.serving "$@"\n')
        binary.chmod(0o755)
        yield {"binary": str(binary)}
    else:
        engine = FakeEngine(tmp_path / "engine", server=[sys.executable, "-m", "isthmus.serving"])
        monkeypatch.setenv("PATH", str(engine.path.parent), prepend=":")
        yield {"image": "tensorflow/serving:2.19"}
        left = engine.containers()
        engine.clear()
        assert left == [], "the container serves on after the validation"


def test_a_good_model_is_blessed(
    make_model: Callable[..., Any], validate: Validate, gate: dict[str, Any]
) -> None:
    blessing, verdict = validate(make_model(), **gate)
    assert verdict.reasons == []
    assert blessing.get_int_custom_property("blessed") == 1
    assert Path(blessing.uri, "INFRA_BLESSED").is_file()
    stages = {stage["stage"]: stage for stage in verdict.details["stages"]}
    assert stages.keys() == {"server_grpc", "server_rest"}
    assert [row["what"] for row in stages["server_grpc"]["measurements"]] == [
        "serving_default",
        "examples",
        "examples, logits",
        "tensors, 3 images",
        "classify",
        "manifest",
    ]
    costs = verdict.details["costs"]
    assert costs["num_requests"] == 20
    assert 0 < costs["p50_ms"] <= costs["p99_ms"]
    assert costs["first_ms"] > 0
    assert 50 < costs["memory_mb"] < 5000
    assert verdict.details["server"] == next(iter(gate.values()), "embedded")


def test_budgets_that_cannot_be_kept(make_model: Callable[..., Any], validate: Validate) -> None:
    blessing, verdict = validate(make_model(), first_request_ms=1e-3, latency_p99_ms=1e-3, memory_mb=1.0)
    assert blessing.get_int_custom_property("blessed") == 0
    first, latency, memory = verdict.reasons
    assert re.fullmatch(
        r"the first request after the load took [\d.]+ ms \(median of those after it [\d.]+ ms\), "
        r"at most 0.001 ms is allowed",
        first,
    )
    assert re.fullmatch(
        r"latency of one image over gRPC is [\d.]+ ms at p99 \(n = 20 requests, median [\d.]+ ms\), "
        r"at most 0.001 ms is allowed",
        latency,
    )
    assert re.fullmatch(r"the server's memory reached \d+ MB, at most 1 MB is allowed", memory)


def test_a_binary_that_is_not_there(
    make_model: Callable[..., Any], validate: Validate, tmp_path: Path
) -> None:
    with pytest.raises(
        PipelineError, match=r"no executable at pipeline.server.binary .*/nothing; give the path"
    ):
        validate(make_model(), binary=str(tmp_path / "nothing"))


def test_a_binary_that_ends(make_model: Callable[..., Any], validate: Validate, tmp_path: Path) -> None:
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\necho the licence has expired >&2\nexit 7\n")
    binary.chmod(0o755)
    with pytest.raises(
        PipelineError, match="the model server stopped with exit code 7: the licence has expired"
    ):
        validate(make_model(), binary=str(binary))


def test_an_image_without_an_engine(
    make_model: Callable[..., Any], validate: Validate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PipelineError, match=r"tensorflow/serving:2.19 needs docker or podman on PATH"):
        validate(make_model(), image="tensorflow/serving:2.19")


def test_how_a_container_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "podman"
    engine.write_text("")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = image_command("tensorflow/serving:2.19")
    server = ExternalServer(command, model_name="colours", saved_model=tmp_path, start_timeout_s=1)
    assert command(server) == [
        str(engine),
        "run",
        "--rm",
        "--network=host",
        f"--name={server.container}",
        f"--volume={tmp_path}:/models/colours/1:ro",
        "tensorflow/serving:2.19",
        f"--port={server.grpc_port}",
        f"--rest_api_port={server.rest_port}",
        "--model_name=colours",
        "--model_base_path=/models/colours",
    ]
    server.stop()


def test_a_wrong_model_is_not_blessed(make_model: Callable[..., Any], validate: Validate) -> None:
    blessing, verdict = validate(make_model(fault="wrong normalisation"))
    assert blessing.get_int_custom_property("blessed") == 0
    assert Path(blessing.uri, "INFRA_NOT_BLESSED").is_file()
    assert [reason.split(": ")[0] for reason in verdict.reasons] == [
        TITLES["server_grpc"],
        TITLES["server_rest"],
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.unlink(), "is not there"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: keep_records(file, of="tensors"), r"has no record of it \(1 of others\)"),
        (
            lambda file: write_records(file, [PredictionLog(classify_log={})]),
            r"has no record of it \(1 of others\)",
        ),
        (lambda file: file.write_bytes(b"no records at all"), "cannot be read: .*"),
    ],
)
def test_a_model_without_a_warm_up_is_not_blessed(
    change: Callable[[Path], Any], problem: str, make_model: Callable[..., Any], validate: Validate
) -> None:
    model = make_model()
    change(saved_model_of(model) / "assets.extra" / "tf_serving_warmup_requests")
    blessing, verdict = validate(model)
    assert blessing.get_int_custom_property("blessed") == 0
    assert Path(blessing.uri, "INFRA_NOT_BLESSED").is_file()
    (reason,) = verdict.reasons
    assert re.fullmatch(
        "the model brings no warm-up for serving_default: assets.extra/tf_serving_warmup_requests "
        f"{problem}; `isthmus export` writes it",
        reason,
    )


def keep_records(file: Path, *, of: str) -> None:
    """Leave the warm-up records of one signature."""
    logs = list(warmup.records(file))
    write_records(file, [log for log in logs if log.predict_log.request.model_spec.signature_name == of])


def write_records(file: Path, logs: list[PredictionLog]) -> None:
    """Replace the warm-up records."""
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def test_what_a_server_says_of_its_warm_up() -> None:
    metrics = Metrics()
    assert not server_budgets.replayed(metrics.page())
    metrics.warmup(model_path="/models/1", status="INVALID_ARGUMENT", duration_us=5.0)
    assert not server_budgets.replayed(metrics.page())
    metrics.warmup(model_path="/models/1", status="OK", duration_us=5.0)
    assert server_budgets.replayed(metrics.page())


def test_a_server_that_did_not_warm_up(make_model: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "1").symlink_to(saved_model_of(make_model()))
    flags = ["--admin_port=0", "--enable_model_warmup=false"]
    with ServerProcess("colours", tmp_path, flags=flags) as server:
        assert server_validator._warmup_refusals(server, ServerGate()) == [
            "the server's metrics tell of no warm-up"
        ]


def test_a_server_that_dies_when_asked(make_model: Callable[..., Any], validate: Validate) -> None:
    with pytest.raises(PipelineError, match="the server answered UNAVAILABLE: "):
        validate(make_model(fault="dies at batch 7"), num_images=7)


def test_a_server_that_cannot_load_the_model(make_model: Callable[..., Any], validate: Validate) -> None:
    model = make_model()
    Path(model.uri, "Format-Serving", "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(ServingError, match="colours"):
        validate(model)


class Answers:
    """A server's answers, made by hand from torch's."""

    def __init__(self, model: Any) -> None:
        self.manifest, self.reference = manifest_of(model), reference_of(model)
        logits = self.reference.logits
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        labels = self.manifest["model"]["labels"]
        ids = logits.argmax(axis=1)
        default = {
            "probabilities": probabilities,
            "class_id": ids,
            "label": np.array([labels[i] for i in ids]),
        }
        self.given: dict[str, dict[str, Any]] = {
            "serving_default": default,
            "examples": {**default, "logits": logits},
            "tensors": {"": logits},
            "classify": {"classes": np.tile(labels, (len(logits), 1)), "scores": probabilities},
            "manifest": {"": [json.dumps(self.manifest)]},
        }

    def problem(self) -> str | None:
        """What ask_everything finds."""
        result = server_validator.ask_everything(
            "server_grpc",
            lambda signature, _: self.given[signature],
            self.reference,
            manifest=self.manifest,
            gates=GateConfig(),
        )
        return result.problem


@pytest.fixture
def answers(make_model: Callable[..., Any]) -> Answers:
    """The right answers."""
    return Answers(make_model())


def test_right_answers_have_no_problem(answers: Answers) -> None:
    assert answers.problem() is None


def test_classes_in_another_order_are_fine(answers: Answers) -> None:
    classify = answers.given["classify"]
    answers.given["classify"] = {key: value[:, ::-1] for key, value in classify.items()}
    assert answers.problem() is None


def test_classes_with_other_names(answers: Answers) -> None:
    answers.given["classify"]["classes"] = np.full((15, 3), "red")
    assert answers.problem() == (
        "`classify` answers with the classes ['red', 'red', 'red'], not with the model's labels"
    )


def test_scores_that_belong_to_another_class(answers: Answers) -> None:
    answers.given["classify"]["scores"] = answers.given["classify"]["scores"][:, ::-1]
    assert "(classify)" in str(answers.problem())


def test_a_label_that_is_not_the_class(answers: Answers) -> None:
    answers.given["examples"]["label"] = np.full(15, "red")
    assert "is answered with the label 'red'" in str(answers.problem())


def test_another_manifest(answers: Answers) -> None:
    answers.given["manifest"] = {"": ["{}"]}
    assert answers.problem() == "the signature `manifest` does not answer with the bundle's manifest"


def test_logits_that_are_off(answers: Answers) -> None:
    answers.given["tensors"] = {"": answers.reference.logits + 1}
    assert "(tensors, 15 images)" in str(answers.problem())
