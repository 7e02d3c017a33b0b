"""`mlflow run .` finds the stages, and its command lines are ones that isthmus takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from mlflow.projects.utils import load_project

from isthmus.cli.parser import build_parser

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["train", "export", "pipeline"])
def test_a_stage_is_a_command(stage: str, tmp_path: Path) -> None:
    project = load_project(str(ROOT))
    command = project.get_entry_point(stage).compute_command({"model": "resnet18"}, str(tmp_path))
    program, *arguments = shlex.split(command)
    assert program == "isthmus"
    parsed = build_parser().parse_args(arguments)
    assert parsed.model == "resnet18"
    assert (ROOT / parsed.config).is_file()


def test_no_stage_is_forgotten() -> None:
    assert set(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]) == {
        "train",
        "export",
        "pipeline",
    }
