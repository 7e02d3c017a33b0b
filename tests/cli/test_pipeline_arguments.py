"""isthmus pipeline runs the pipeline; with an action after it, something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.cli import commands
from isthmus.cli.main import main
from isthmus.cli.parser import build_parser


def test_without_an_action_the_pipeline_runs() -> None:
    arguments = build_parser().parse_args(["pipeline", "--model", "resnet18"])
    assert arguments.run is commands.pipeline
    assert arguments.model == "resnet18"


def test_predict_has_a_model_of_its_own_meaning() -> None:
    asked = [
        "pipeline",
        "predict",
        "--model",
        "models:/digits@champion",
        "--data",
        "photos",
        "--output",
        "out",
    ]
    arguments = build_parser().parse_args([*asked, "--beam-arg=--runner=FlinkRunner"])
    assert arguments.run is commands.predict
    assert arguments.model == "models:/digits@champion"
    assert arguments.output == "out"
    assert arguments.beam_arg == ["--runner=FlinkRunner"]


def test_predict_writes_to_no_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes no folder that is called s3: either."""
    monkeypatch.chdir(tmp_path)
    asked = ["pipeline", "predict", "--model", "m", "--data", "photos", "--output", "s3://b/x"]
    assert main([*asked, "--home", str(tmp_path / "home")]) == 1
    assert "error: --output s3://b/x: predictions are written to a folder of this" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


def test_predict_wants_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pipeline", "predict", "--data", "photos"])
    assert "the following arguments are required: --model, --output" in capsys.readouterr().err
