"""What runs training elsewhere: every field is one that the cluster's own models know, every file is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.aiplatform_v1.types import CustomJobSpec
from google.protobuf import json_format
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

from isthmus.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "training"


def command(arguments: list[str]) -> Any:
    """What isthmus makes of the arguments that follow torchrun's own."""
    assert arguments[arguments.index("-m") + 1] == "isthmus.cli.main"
    return build_parser().parse_args(arguments[arguments.index("-m") + 2 :])


def test_kubeflow_trainer_knows_every_field_of_the_job() -> None:
    content = yaml.safe_load((FOLDER / "jobs" / "trainjob.yaml").read_text())
    job = TrainerV1alpha1TrainJob.from_dict(content)
    assert job is not None
    # What the model does not know, it drops: nothing may be lost on the way back.
    assert job.to_dict() == content
    trainer = content["spec"]["trainer"]
    arguments = command(trainer["args"])
    assert (ROOT / arguments.config).is_file()
    assert f"--nnodes={trainer['numNodes']}" in trainer["args"]


def test_vertex_knows_every_field_of_the_job() -> None:
    content = yaml.safe_load((FOLDER / "jobs" / "vertex_custom_job.yaml").read_text())
    spec = json_format.ParseDict(content, CustomJobSpec.pb(CustomJobSpec()))
    pool = spec.worker_pool_specs[0]
    assert f"--nproc-per-node={pool.machine_spec.accelerator_count}" in pool.container_spec.args
    arguments = command(list(pool.container_spec.args))
    assert (ROOT / arguments.config).is_file()
    content["workerPoolSpecs"][0]["machineSpec"]["acceleratorTyp"] = "x"
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(content, CustomJobSpec.pb(CustomJobSpec()))


def test_the_image_copies_what_is_there_and_starts_the_command() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert stages == ["python:3.12-slim-trixie"] * 2
    for line in lines:
        if line.startswith("COPY ") and "--from=" not in line:
            *sources, _ = [part for part in line.split()[1:] if not part.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line
    shell = next(line for line in lines if line.startswith("CMD "))
    arguments = re.findall(r'"([^"]*)"', shell)
    assert (ROOT / command(arguments).config).is_file()
    assert any(line.startswith("USER 65532") for line in lines)
