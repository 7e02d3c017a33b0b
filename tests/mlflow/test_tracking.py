"""The store, the runs of the stages, and what MLflow says meanwhile (nothing)."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isthmus.lineage import models, tracking
from isthmus.lineage.errors import LineageError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_run_records_params_metrics_data_and_code(home):
    client = tracking.connect(home)
    with tracking.start_stage_run(
        experiment="digits",
        stage="train",
        run_name="first",
        params={"train": {"epochs": 2, "lr": 0.1}, "long": "x" * 7000},
        tags={"name": "digits", "flag": True, "nothing": None, "other.key": 1},
    ) as run:
        run_id = run.info.run_id
        data = tracking.log_dataset(
            run_id, name="digits", digest="ab" * 32, source="sklearn", profile={"train": 9}
        )
        for epoch in (1, 2):
            tracking.log_metrics(run_id, {"loss": 1 / epoch}, step=epoch)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["isthmus.stage"] == "train"
    assert run.data.tags["isthmus.flag"] == "true"
    assert run.data.tags["other.key"] == "1"
    assert "isthmus.nothing" not in run.data.tags
    assert run.data.tags["isthmus.git_commit"] == run.data.tags["mlflow.source.git.commit"]
    assert run.data.tags["isthmus.dataset_digest"] == data.full == "ab" * 32
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.digest == data.digest == ("ab" * 32)[:36]
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1, 2]


def test_a_failing_stage_leaves_a_failed_run(home):
    client = tracking.connect(home)
    with (
        pytest.raises(ZeroDivisionError),
        tracking.start_stage_run(experiment="digits", stage="export") as run,
    ):
        raise ZeroDivisionError
    assert client.get_run(run.info.run_id).info.status == "FAILED"


def test_metrics_are_linked_to_model_and_data(home, tmp_path):
    client = tracking.connect(home)
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"onnx")
    with tracking.start_stage_run(experiment="digits", stage="pipeline") as run:
        run_id = run.info.run_id
        data = tracking.log_dataset(run_id, name="digits", digest="c" * 64, source="x", context="evaluation")
        model_id = models.log_onnx_model(run_id, onnx_path=onnx)
        tracking.log_metrics(run_id, {"accuracy/label:3": 0.5, "a%b": 1}, model_id=model_id, dataset=data)
    metrics = {metric.key: metric for metric in client.get_logged_model(model_id).metrics}
    assert metrics["accuracy/label:3"].value == 0.5
    assert metrics["accuracy/label:3"].dataset_digest == data.digest
    assert "a_b" in metrics


def test_two_processes_may_create_the_experiment_at_once(home):
    client = tracking.connect(home)
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(tracking.experiment_id(client, "new"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_deleted_experiment_says_what_to_do(home):
    client = tracking.connect(home)
    client.delete_experiment(tracking.experiment_id(client, "digits"))
    with pytest.raises(LineageError, match="mlflow experiments restore"):
        tracking.experiment_id(client, "digits")


def test_the_store_is_argument_then_environment_then_home(home, tmp_path, monkeypatch):
    assert tracking.connect(home).tracking_uri == tracking.default_tracking_uri(home)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    other = tracking.default_tracking_uri(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert tracking.connect(tmp_path / "new").tracking_uri == other
    assert not (tmp_path / "new").exists()
    assert tracking.connect(tmp_path / "new", other).tracking_uri == other


def test_a_store_that_cannot_be_opened_is_one_clear_line(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(
        LineageError, match=r"cannot open the MLflow store sqlite:.*not a database.*--tracking-uri"
    ):
        tracking.connect(tmp_path)


_KILLED_BY_ITSELF = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from isthmus.lineage import tracking

left = int(sys.argv[2])

@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

tracking.connect(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statements", [2, 400])
def test_killed_while_the_store_is_made_the_next_one_makes_it(tmp_path, statements):
    home = tmp_path / "home"
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_BY_ITSELF, str(home), str(statements)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in home.iterdir()] == [".mlflow.db.new"]
    client = tracking.connect(home)
    assert client.get_experiment("0").name == "Default"
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]


def test_a_password_is_never_in_the_text():
    assert tracking._without_password("postgresql://operator:secret@db/x") == "postgresql://operator:***@db/x"


def test_a_project_run_becomes_the_parent(home, monkeypatch):
    client = tracking.connect(home)
    parent = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    with tracking.start_stage_run(experiment="digits", stage="train") as run:
        pass
    assert client.get_run(run.info.run_id).data.tags["mlflow.parentRunId"] == parent
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with tracking.start_stage_run(experiment="digits", stage="train") as run:
        pass
    assert "mlflow.parentRunId" not in client.get_run(run.info.run_id).data.tags


def test_connecting_prints_nothing_and_turns_telemetry_off(tmp_path):
    code = (
        "import sys, mlflow; from isthmus.lineage import tracking; from pathlib import Path\n"
        "tracking.connect(Path(sys.argv[1]))\n"
        "from mlflow.telemetry import get_telemetry_client; assert get_telemetry_client() is None\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PYTEST", "CI"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_project_entry_points_are_commands_that_exist():
    from mlflow.projects._project_spec import load_project

    from isthmus.cli.parser import build_parser

    project = load_project(str(REPOSITORY))
    assert sorted(project._entry_points) == ["export", "pipeline", "train"]
    for name, entry_point in project._entry_points.items():
        command = entry_point.compute_command({"name": "mine"}, storage_dir=None)
        assert command.startswith("isthmus ")
        words = shlex.split(command.removeprefix("isthmus "))
        arguments = build_parser().parse_args(words)
        assert (words[0], arguments.name) == (name, "mine")
        assert (REPOSITORY / arguments.config).parent == REPOSITORY / "recipes"
