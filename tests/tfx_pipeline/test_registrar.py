"""Registrar against a real MLflow store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts

from isthmus.lineage import registry, tracking
from isthmus.tfx_pipeline import registrar
from isthmus.tfx_pipeline.artifacts import ParityReport, Registration, Verdict
from isthmus.tfx_pipeline.evaluator import PLOTS, Evaluation
from isthmus.tfx_pipeline.slices import Slice

Register = Callable[..., Any]


@pytest.fixture
def register(
    execute: Callable[..., None],
    artifact_at: Callable[..., Any],
    make_bundle: Callable[..., Path],
    make_model: Callable[..., Any],
    migrated_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Register:
    """Run the component for a model that was pushed, or not; returns the Registration artifact."""
    found = Evaluation(
        whole=Slice(kind="whole", value="", num_images=30, num_right=27),
        slices=(Slice(kind="class", value="red", num_images=10, num_right=8),),
        calibration_error=0.1,
        confidence=0.95,
        num_too_small=0,
    )
    monkeypatch.setattr(registrar, "read_evaluation", lambda _: found)
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_store, tmp_path / "home" / "mlflow.db")

    def run(*, pushed: bool = True) -> Any:
        parity = artifact_at(ParityReport, tmp_path / "parity")
        Path(parity.uri).mkdir(exist_ok=True)
        Verdict(passed=True, summary="", details={"error": 1e-6}).write(parity)
        artifact = artifact_at(standard_artifacts.PushedModel, tmp_path / "pushed")
        artifact.set_int_custom_property("pushed", int(pushed))
        if pushed:
            shutil.copytree(make_bundle() / "saved_model", tmp_path / "serving" / "17", dirs_exist_ok=True)
            artifact.set_string_custom_property("pushed_destination", str(tmp_path / "serving" / "17"))
            artifact.set_string_custom_property("pushed_version", "17")
        else:
            artifact.set_string_custom_property("not_pushed_because", '["Evaluator: bad"]')
        registration = artifact_at(Registration, tmp_path / "registration")
        evaluation = artifact_at(standard_artifacts.ModelEvaluation, tmp_path / "evaluation")
        server = artifact_at(standard_artifacts.InfraBlessing, tmp_path / "server")
        for artifact_ in (evaluation, server):
            Path(artifact_.uri).mkdir(exist_ok=True)
        for plot in PLOTS:
            Path(evaluation.uri, plot).write_bytes(plot.encode())
        Verdict(passed=True, summary="", details={"costs": {"p99_ms": 3.5}}).write(server)
        execute(
            registrar.Executor,
            inputs={
                "model": make_model(),
                "pushed_model": artifact,
                "evaluation": evaluation,
                "parity": parity,
                "infra_blessing": server,
            },
            outputs={"registration": registration},
            properties={
                "name": "colours",
                "bundle": str(make_bundle()),
                "home": str(tmp_path / "home"),
                "tracking_uri": "",
                "run": "",
                "on_cluster": 0,
                "dataset": json.dumps(
                    {"name": "colours", "source": "here", "digest": "d" * 64, "splits": {"test": 30}}
                ),
                "settings": json.dumps({"evaluation": {"min_accuracy": 0.5}}),
            },
        )
        return registration

    return run


def test_a_push_is_a_version_with_its_links(
    register: Register, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    registration = register()
    assert registration.get_int_custom_property(registrar.REGISTERED_VERSION) == 1
    version = registry.get("colours", "champion")
    assert version.version == 1
    assert version.aliases == ("challenger", "champion")
    assert version.served_version == 17
    assert version.pushed_path == tmp_path / "serving" / "17"
    assert version.bundle == make_bundle()
    assert version.metrics["accuracy"] == 0.9


def test_the_run_holds_metrics_and_settings(register: Register, tmp_path: Path) -> None:
    registration = register()
    client = tracking.connect(tmp_path / "home")
    run = client.get_run(registration.get_string_custom_property(registrar.MLFLOW_RUN_ID))
    assert run.data.tags["isthmus.stage"] == "pipeline"
    assert run.data.metrics["accuracy"] == 0.9
    assert run.data.metrics["accuracy/label:red"] == 0.8
    assert run.data.metrics["parity/pipeline/error"] == 1e-6
    assert run.data.metrics["server/p99_ms"] == 3.5
    plots = client.list_artifacts(run.info.run_id, "evaluation")
    assert [plot.path for plot in plots] == ["evaluation/calibration.png", "evaluation/confusion.png"]
    assert run.data.params["evaluation.min_accuracy"] == "0.5"
    assert run.info.status == "FINISHED"
    assert run.data.tags["isthmus.dataset_digest"] == "d" * 64
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "colours"


def test_registering_twice_gives_one_version(register: Register) -> None:
    assert register().get_int_custom_property(registrar.REGISTERED_VERSION) == 1
    assert register().get_int_custom_property(registrar.REGISTERED_VERSION) == 1
    assert len(registry.list_versions("colours")) == 1


def test_a_refused_model_is_recorded_and_not_registered(register: Register, tmp_path: Path) -> None:
    registration = register(pushed=False)
    assert registration.get_int_custom_property(registrar.REGISTERED_VERSION) == 0
    client = tracking.connect(tmp_path / "home")
    run = client.get_run(registration.get_string_custom_property(registrar.MLFLOW_RUN_ID))
    assert json.loads(run.data.tags["isthmus.not_pushed_because"]) == ["Evaluator: bad"]
    assert registry.list_models() == []
