"""A study of real trainings: children of one run, continued when stopped, its best where export looks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from isthmus.lineage import tracking
from isthmus.training.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from isthmus.training.errors import TrainingError, TrainingInterruptedError
from isthmus.training.sweep import SweepResult, sweep
from isthmus.training.sweep_config import Parameter, SweepConfig

PARAMETERS = {
    "train.lr": Parameter(low=1e-4, high=1e-2, log=True),
    "model.args.drop_rate": Parameter(choices=(0.0, 0.2)),
}


def run(images: Path, home: Path, parameters: dict[str, Parameter], *, trials: int = 3) -> SweepResult:
    return sweep(
        name="searched",
        data=DataConfig(root=images, name="colours"),
        model=ModelConfig(name="test_resnet", input_size=(3, 32, 32)),
        train=TrainConfig(
            epochs=1, batch_size=16, workers=0, threads=1, augment=AugmentConfig(enabled=False)
        ),
        sweep=SweepConfig(parameters=parameters, trials=trials),
        home=home,
        recipe={"name": "searched"},
    )


def test_a_stopped_study_goes_on_and_its_best_is_the_latest(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from isthmus.training import sweep as module

    train, calls = module.train, []

    def stopped(**what: Any) -> Any:
        calls.append(what["train"].lr)
        if len(calls) == 2:
            raise TrainingInterruptedError("stopped by SIGTERM", exit_code=75)
        return train(**what)

    home = tmp_path / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", stopped)
        with pytest.raises(TrainingInterruptedError):
            run(images, home, PARAMETERS)
    with caplog.at_level(logging.INFO, logger="isthmus"):
        result = run(images, home, PARAMETERS)
    assert "continuing after 1 trials" in caplog.text
    assert (result.trials, result.failed) == (3, 1)
    assert (home / "checkpoints" / "searched" / "latest").resolve() == result.checkpoint
    assert set(result.parameters) == set(PARAMETERS)
    # What was stopped was the first to be trained again, with the same values.
    client = tracking.connect(home)
    runs = client.search_runs([client.get_experiment_by_name("searched").experiment_id])
    parents = [run for run in runs if run.info.run_name.startswith("sweep-")]
    children = [run for run in runs if not run.info.run_name.startswith("sweep-")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {run.info.run_id for run in parents}
    rates = [
        float(run.data.params["train.lr"]) for run in sorted(children, key=lambda run: run.info.start_time)
    ]
    assert rates[1] == pytest.approx(calls[1])
    assert len(rates) == 3
    best = max(children, key=lambda run: (run.data.metrics["val_top1"], -run.info.start_time))
    assert best.data.metrics["val_top1"] == result.metrics["val_top1"]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "sweep wants at least one"),
        ({"train.lr": Parameter()}, r"sweep.parameters.train.lr: give choices, or low and a greater high"),
        ({"train.lr": Parameter(low=0.0, high=1.0, log=True)}, "log wants low above 0"),
        (
            {"train.learning": Parameter(choices=(1,))},
            r"sweep.parameters: learning: unexpected keyword argument",
        ),
        (
            {"train.epochs": Parameter(choices=("many",))},
            r"sweep.parameters: epochs: input should be a valid integer",
        ),
        ({"data.root": Parameter(choices=("a",))}, r"keys begin with model. or train."),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    parameters: dict[str, Parameter], text: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=text):
        run(images, tmp_path / "home", parameters)
