"""`isthmus train --sweep`: an Optuna study whose trials are trainings, children of one MLflow run.

The study lies in `<home>/sweeps.db`, under a name made from everything that its result depends on. The same command
goes on where it was stopped: a training that had begun is continued, and finished ones are not repeated. In the end
`latest` leads to the checkpoint of the best trial.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from isthmus.lineage import tracking
from isthmus.lineage.files import canonical_json, sha256_text
from isthmus.training import checkpoint as checkpoints
from isthmus.training.config import DataConfig, ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError, TrainingInterruptedError
from isthmus.training.sweep_config import Parameter, SweepConfig
from isthmus.training.train import TrainResult, scored, train

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

SECTIONS = {"model": ModelConfig, "train": TrainConfig}


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The best of a study."""

    checkpoint: Path
    metrics: dict[str, float]
    parameters: dict[str, Any]
    """Of the best trial, by dotted recipe key."""

    trials: int
    """Finished ones, failed ones not counted."""

    failed: int


def sweep(
    *,
    name: str,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    sweep: SweepConfig,
    home: Path,
    recipe: dict[str, Any],
    tracking_uri: str | None = None,
) -> SweepResult:
    """Train until the study has its number of trials; point `latest` at the best by the validation metric.

    Raises TrainingError for a parameter that the recipe does not have or that cannot be drawn, and when every trial
    failed; TrainingInterruptedError as `train` does.
    """
    home = Path(home).absolute()
    base = {"model": model, "train": train}
    _check(sweep, base)
    study = _study(name, base=base, data=data, sweep=sweep, home=home)
    tracking.connect(home, tracking_uri)
    with tracking.start_stage_run(
        experiment=name,
        stage="train",
        run_name=f"sweep-{checkpoints.new_id()}",
        params=recipe,
        tags={"name": name},
    ) as parent:

        def objective(trial: optuna.Trial) -> float:
            values = {key: _draw(trial, key, parameter) for key, parameter in sweep.parameters.items()}
            result = _train(name, base, values, data, home, recipe, tracking_uri)
            trial.set_user_attr("values", values)
            trial.set_user_attr("checkpoint", str(result.checkpoint))
            trial.set_user_attr("metrics", result.metrics)
            log.info(
                "sweep %s: trial %d, %s: %s", name, trial.number, values, scored(result.metrics, split="val")
            )
            return next(value for key, value in result.metrics.items() if key in ("val_top1", "val_map"))

        _optimize(study, objective, left=sweep.trials - len(_finished(study)))
        result = _best(study, name)
        tracking.log_metrics(parent.info.run_id, result.metrics)
        tracking.log_params(
            parent.info.run_id, {f"best.{key}": value for key, value in result.parameters.items()}
        )
    checkpoints.point(home / "checkpoints" / name, result.checkpoint)
    log.info(
        "sweep %s: best of %d, %s with %s, %s",
        name,
        result.trials,
        scored(result.metrics, split="test"),
        result.parameters,
        result.checkpoint,
    )
    return result


def _check(sweep: SweepConfig, base: Mapping[str, Any]) -> None:
    if sweep.trials < 1 or not sweep.parameters:
        raise TrainingError("sweep wants at least one of trials and one of parameters")
    for key, parameter in sweep.parameters.items():
        ranged = parameter.low is not None and parameter.high is not None and parameter.low < parameter.high
        if (parameter.choices is None) != ranged:
            raise TrainingError(f"sweep.parameters.{key}: give choices, or low and a greater high")
        if parameter.log and not (parameter.low or 0) > 0:
            raise TrainingError(f"sweep.parameters.{key}: log wants low above 0")
        for value in parameter.choices or (parameter.low, parameter.high):
            _changed(base, {key: int(value) if parameter.integer else value})


def _changed(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with some keys set, checked as a recipe is."""
    plain = {section: dataclasses.asdict(config) for section, config in base.items()}
    for key, value in values.items():
        section, *path = key.split(".")
        if section not in plain or not path:
            raise TrainingError(f"sweep.parameters.{key}: keys begin with model. or train.")
        place = plain[section]
        for part in path[:-1]:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[path[-1]] = value
    try:
        return {
            section: pydantic.TypeAdapter(kind).validate_python(plain[section])
            for section, kind in SECTIONS.items()
        }
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TrainingError(f"sweep.parameters: {where}: {first['msg'].lower()}") from problem


def _draw(trial: optuna.Trial, key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        # Optuna stores plain values only: what is chosen is the position.
        return parameter.choices[trial.suggest_categorical(key, list(range(len(parameter.choices))))]
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.integer:
        return trial.suggest_int(key, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)


def _train(
    name: str,
    base: Mapping[str, Any],
    values: Mapping[str, Any],
    data: DataConfig,
    home: Path,
    recipe: dict[str, Any],
    tracking_uri: str | None,
) -> TrainResult:
    changed = _changed(base, values)
    return train(
        name=name,
        data=data,
        model=changed["model"],
        train=changed["train"],
        home=home,
        recipe=recipe,
        tracking_uri=tracking_uri,
        point_latest=False,
    )


def _study(
    name: str, *, base: Mapping[str, Any], data: DataConfig, sweep: SweepConfig, home: Path
) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    everything = {
        "base": {section: dataclasses.asdict(config) for section, config in base.items()},
        "data": dataclasses.asdict(data),
        # More trials continue the same study.
        "sweep": dataclasses.asdict(sweep) | {"trials": None},
    }
    digest = sha256_text(canonical_json(_plain(everything)))[:12]
    home.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=f"{name}-{digest}",
        storage=f"sqlite:///{home / 'sweeps.db'}",
        direction="maximize",
        load_if_exists=True,
    )
    _resume(study)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    # A study that goes on must not draw again what it drew first.
    study.sampler = kinds[sweep.sampler](seed=sweep.seed + len(study.trials))
    return study


def _resume(study: optuna.Study) -> None:
    """What a stopped sweep was training comes first, with the same values: `train` then continues it."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    if study.trials:
        log.info("sweep %s: continuing after %d trials", study.study_name, len(_finished(study)))


def _optimize(study: optuna.Study, objective: Any, *, left: int) -> None:
    from optuna.trial import TrialState

    for _ in range(left):
        trial = study.ask()
        try:
            study.tell(trial, objective(trial))
        except TrainingInterruptedError:
            # The trial stays RUNNING: the same command continues it.
            raise
        except TrainingError as problem:
            log.warning("sweep: trial %d failed: %s", trial.number, problem)
            study.tell(trial, state=TrialState.FAIL)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _best(study: optuna.Study, name: str) -> SweepResult:
    finished = _finished(study)
    if not finished:
        raise TrainingError(f"sweep {name}: every trial failed, see the lines above")
    best = study.best_trial
    failed = len(study.trials) - len(finished)
    return SweepResult(
        checkpoint=Path(best.user_attrs["checkpoint"]),
        metrics=best.user_attrs["metrics"],
        parameters=best.user_attrs["values"],
        trials=len(finished),
        failed=failed,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
