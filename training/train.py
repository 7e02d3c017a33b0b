"""The path, top to bottom: images, a timm model, its training, a checkpoint.

    isthmus train --config recipes/digits.yaml

`train` decides in this order: a checkpoint with the same fingerprint is there, and nothing is done; an
unfinished run with the same fingerprint is there, and is continued after its last complete epoch; otherwise
training starts from scratch (or from timm's pretrained weights).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage.files import publish_directory, staging_directory
from isthmus.lineage.source import git_state, library_versions
from isthmus.training import checkpoint as checkpoints
from isthmus.training import system_metrics
from isthmus.training.config import DataConfig, ModelConfig, TrainConfig
from isthmus.training.data import PreparedData, find, prepare
from isthmus.training.disk import no_space_is_one_line, replace_lock
from isthmus.training.distributed import World, joined
from isthmus.training.model import check_name, data_config, model_args
from isthmus.training.settings import check_settings
from isthmus.training.unfinished import Progress, Unfinished, restore

if TYPE_CHECKING:
    import torch

    from isthmus.training.fit import Fit
    from isthmus.training.tracking import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the checkpoint is and how good it is."""

    checkpoint: Path
    metrics: dict[str, float]
    """val_top1, val_loss, test_top1, test_loss (accuracies in 0..1; of multi-label heads val_map and test_map),
    best_epoch, epochs, seconds."""

    up_to_date: bool
    """True: nothing had changed since this checkpoint, and nothing was done."""


def train(
    *,
    name: str,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    home: Path,
    recipe: dict[str, Any],
    tracking_uri: str | None = None,
    force: bool = False,
    point_latest: bool = True,
) -> TrainResult:
    """Train what the recipe describes and publish `home/checkpoints/<name>/<id>`, with `latest` leading to
    it unless `point_latest` is false.

    `recipe` is the whole resolved recipe, which is recorded as it is. `force` trains again, from the start,
    although nothing changed.

    Raises TrainingError in one line for whatever is the user's to mend: data, model, recipe, a loss that is
    not a number, memory, disk. Raises TrainingInterruptedError after SIGTERM or Ctrl-C; the same command
    then continues.
    """
    home = Path(home).absolute()
    check_settings(model, train)
    with joined(train.device) as world:
        if not world.is_first:
            return _follow(world)
        return _lead(
            world,
            name=name,
            data=data,
            model=model,
            train=train,
            home=home,
            recipe=recipe,
            tracking_uri=tracking_uri,
            force=force,
            point_latest=point_latest,
        )


def _lead(
    world: World,
    *,
    name: str,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    home: Path,
    recipe: dict[str, Any],
    tracking_uri: str | None,
    force: bool,
    point_latest: bool,
) -> TrainResult:
    """Rank 0: decide what is to be done, do it, and tell the others."""
    prepared = find(data, home=home)
    if prepared is None:
        # A misspelt model is said before a long preparation; where all is up to date, torch is not imported.
        check_name(model.name)
        prepared = prepare(data, home=home)
    parent = home / "checkpoints" / name
    wanted = checkpoints.fingerprint(name=name, model=model, train=train, data=prepared, processes=world.size)
    with no_space_is_one_line(parent), replace_lock(parent.parent, name):
        found = None if force else checkpoints.find(parent, wanted)
        if found is not None:
            folder, record = found
            if point_latest and not checkpoints.latest_is(parent, folder):
                checkpoints.point(parent, folder)
            metrics = record["metrics"]
            log.info("train %s: up to date, %s, %s", name, scored(metrics, split="test"), folder)
            return world.share(TrainResult(checkpoint=folder, metrics=metrics, up_to_date=True))
        job = Job(
            name=name,
            model=model,
            train=train,
            data=prepared,
            home=home,
            recipe=_plain(recipe | {"data": data, "model": model, "train": train}),
            tracking_uri=tracking_uri,
            fingerprint=wanted,
            point_latest=point_latest,
        )
        _clear_leftovers(job, force=force)
        state = job.unfinished.read()
        world.share(job)
        world.share(state)
        folder, metrics = _run(job, state, world)
    return world.share(TrainResult(checkpoint=folder, metrics=metrics, up_to_date=False))


def _follow(world: World) -> TrainResult:
    """Every other rank: compute what rank 0 decides, and write nothing."""
    from isthmus.training.fit import Fit

    job = world.share(None)
    if isinstance(job, TrainResult):
        return job
    state = world.share(None)
    fit = Fit(model=job.model, train=job.train, data=job.data, world=world)
    progress = _restored(fit, state)
    fit.run(progress, save=_nothing, report=_nothing)
    fit.test(progress)
    result: TrainResult = world.share(None)
    return result


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, decided."""

    name: str
    model: ModelConfig
    train: TrainConfig
    data: PreparedData
    home: Path
    recipe: dict[str, Any]
    tracking_uri: str | None
    fingerprint: str
    point_latest: bool = True

    @property
    def parent(self) -> Path:
        """Folder of all checkpoints of this name."""
        return self.home / "checkpoints" / self.name

    @property
    def unfinished(self) -> Unfinished:
        """Where an interrupted run with this fingerprint is kept."""
        folder = self.parent / f".unfinished-{self.fingerprint[:16]}"
        return Unfinished(folder=folder, keep=self.train.keep_states)


def _nothing(*_: Any) -> None:
    """What ranks other than the first save and report."""


def _restored(fit: Fit, state: tuple[Progress, dict[str, Any]] | None) -> Progress:
    """How far the run is, with task, optimizer and scaler put there."""
    if state is None:
        return Progress()
    progress, values = state
    restore(values, fit.task, fit.optimizer, fit.scaler)
    return progress


def _run(
    job: Job, state: tuple[Progress, dict[str, Any]] | None, world: World
) -> tuple[Path, dict[str, float]]:
    """Train, test, publish."""
    from isthmus.training.fit import Fit
    from isthmus.training.tracking import training_run

    started = time.perf_counter()
    checkpoint_id = checkpoints.new_id()
    fit = Fit(model=job.model, train=job.train, data=job.data, world=world)
    log.info("train %s: %s", job.name, fit.describe())
    progress = _restored(fit, state)
    epochs, batches = progress.position
    if epochs or batches:
        where = f"epoch {epochs} of {fit.epochs}" + (f" and step {batches} of the next" if batches else "")
        log.info("train %s: continuing after %s", job.name, where)
    with training_run(
        name=job.name,
        run_name=checkpoint_id,
        home=job.home,
        tracking_uri=job.tracking_uri,
        recipe=job.recipe,
        data=job.data,
        tags={"model_name": job.model.name, "fingerprint": job.fingerprint},
        resumes=progress.run_id,
    ) as run:
        for epoch, metrics in enumerate(progress.history):
            run.epoch(epoch, metrics)
        progress.run_id = run.run_id
        with system_metrics.recorded(run.run_id, tracking_uri=run.tracking_uri):
            fit.run(
                progress,
                save=lambda progress: job.unfinished.save(fit.task, fit.optimizer, fit.scaler, progress),
                report=run.epoch,
            )
            metrics = fit.test(progress)
        figures = fit.pictures()
        folder = _publish(
            job, fit.best_model(progress), progress, metrics, run=run, checkpoint_id=checkpoint_id
        )
        run.pictures(figures)
    job.unfinished.discard()
    log.info(
        "train %s: %s on %d images, %s (%s weights of epoch %d), %.0f s, %s",
        job.name,
        scored(metrics, split="test"),
        job.data.splits["test"],
        scored(metrics, split="val"),
        progress.best_weights,
        metrics["best_epoch"],
        time.perf_counter() - started,
        folder,
    )
    return folder, metrics


def scored(metrics: dict[str, float], *, split: str) -> str:
    """`test_top1 0.9944`: the metric that decides (test_map for multi-label heads)."""
    key = next(key for key in (f"{split}_top1", f"{split}_map") if key in metrics)
    return f"{key} {metrics[key]:.4f}"


def _publish(
    job: Job,
    model: torch.nn.Module,
    progress: Progress,
    metrics: dict[str, float],
    *,
    run: Run,
    checkpoint_id: str,
) -> Path:
    """Write the checkpoint beside, record it in MLflow, rename it into place, and let `latest` lead to
    it."""
    target = job.parent / checkpoint_id
    preprocessing = data_config(model, job.model)
    args = model_args(job.model)
    with staging_directory(job.parent) as staging:
        weights_sha256 = checkpoints.write_model(
            staging, model, labels=job.data.classes, args=args, preprocessing=preprocessing
        )
        model_id = run.checkpoint(
            model,
            path=target,
            input_size=preprocessing["input_size"],
            num_classes=len(job.data.classes),
            metrics=metrics,
            tags={"weights_sha256": weights_sha256, "weights": progress.best_weights},
        )
        record = _record(job, model, preprocessing=preprocessing, args=args) | {
            "weights_sha256": weights_sha256,
            "weights": progress.best_weights,
            "metrics": metrics,
            "history": progress.history,
            "mlflow": {
                "tracking_uri": run.tracking_uri,
                "experiment_id": run.experiment_id,
                "run_id": run.run_id,
                "model_id": model_id,
            },
        }
        checkpoints.write_record(staging, record)
        publish_directory(staging, target)
    if job.point_latest:
        checkpoints.point(job.parent, target)
    return target


def _record(
    job: Job, model: torch.nn.Module, *, preprocessing: dict[str, Any], args: dict[str, Any]
) -> dict[str, Any]:
    """The part of checkpoint.json that is known before training."""
    base, _, tag = job.model.name.partition(".")
    return {
        "name": job.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": job.fingerprint,
        "model": {
            "name": base,
            "args": args,
            "pretrained_tag": (tag or model.pretrained_cfg.get("tag")) if job.model.pretrained else None,
            "num_classes": len(job.data.classes),
            "input_size": preprocessing["input_size"],
            "head": "multi_label" if job.data.multi_label else "single_label",
            "labels": list(job.data.classes),
        },
        "preprocessing": preprocessing,
        "dataset": {
            "name": job.data.name,
            "source": job.data.source,
            "root": str(job.data.root),
            "digest": job.data.digest,
            "splits": job.data.splits,
            "labels": list(job.data.classes),
        },
        "recipe": job.recipe,
        "source": git_state(),
        "versions": library_versions(checkpoints.VERSIONED_LIBRARIES),
    }


def _clear_leftovers(job: Job, *, force: bool) -> None:
    """Remove half-written checkpoints of killed runs; `force` also forgets how far this one was.

    Unfinished runs of other fingerprints (another recipe under the same name) are kept and named.
    """
    for leftover in job.parent.glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if force:
        job.unfinished.discard()
    others = [folder for folder in job.parent.glob(".unfinished-*") if folder != job.unfinished.folder]
    if others:
        log.info(
            "train %s: %d unfinished runs of other recipes or code stay in %s",
            job.name,
            len(others),
            job.parent,
        )


def _plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as the JSON values that they mean."""

    def convert(other: Any) -> Any:
        if dataclasses.is_dataclass(other) and not isinstance(other, type):
            return dataclasses.asdict(other)
        return str(other)

    return json.loads(json.dumps(value, default=convert))
