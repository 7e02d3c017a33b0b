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
from isthmus.training.config import DataConfig, ModelConfig, TrainConfig
from isthmus.training.data import PreparedData, find, prepare
from isthmus.training.disk import no_space_is_one_line, replace_lock
from isthmus.training.model import check_name, data_config, model_args
from isthmus.training.settings import check_settings
from isthmus.training.unfinished import Progress, Unfinished

if TYPE_CHECKING:
    import torch

    from isthmus.training.tracking import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the checkpoint is and how good it is."""

    checkpoint: Path
    metrics: dict[str, float]
    """val_top1, val_loss, test_top1, test_loss (accuracies in 0..1), best_epoch, seconds."""

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
) -> TrainResult:
    """Train what the recipe describes and publish `home/checkpoints/<name>/<id>`, with `latest` leading to
    it.

    `recipe` is the whole resolved recipe, which is recorded as it is. `force` trains again, from the start,
    although nothing changed.

    Raises TrainingError in one line for whatever is the user's to mend: data, model, recipe, a loss that is
    not a number, memory, disk. Raises TrainingInterruptedError after SIGTERM or Ctrl-C; the same command
    then continues.
    """
    home = Path(home).absolute()
    check_settings(model, train)
    prepared = find(data, home=home)
    if prepared is None:
        # A misspelt model is said before a long preparation; where all is up to date, torch is not imported.
        check_name(model.name)
        prepared = prepare(data, home=home)
    parent = home / "checkpoints" / name
    wanted = checkpoints.fingerprint(
        name=name, model=dataclasses.asdict(model), train=dataclasses.asdict(train), data=prepared
    )
    with no_space_is_one_line(parent), replace_lock(parent.parent, name):
        found = None if force else checkpoints.find(parent, wanted)
        if found is not None:
            folder, record = found
            if not checkpoints.latest_is(parent, folder):
                checkpoints.point(parent, folder)
            log.info("train %s: up to date, test_top1 %.4f, %s", name, record["metrics"]["test_top1"], folder)
            return TrainResult(checkpoint=folder, metrics=record["metrics"], up_to_date=True)
        job = Job(
            name=name,
            model=model,
            train=train,
            data=prepared,
            home=home,
            recipe=_plain(recipe | {"data": data, "model": model, "train": train}),
            tracking_uri=tracking_uri,
            fingerprint=wanted,
        )
        _clear_leftovers(job, force=force)
        folder, metrics = _run(job)
    return TrainResult(checkpoint=folder, metrics=metrics, up_to_date=False)


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

    @property
    def parent(self) -> Path:
        """Folder of all checkpoints of this name."""
        return self.home / "checkpoints" / self.name

    @property
    def unfinished(self) -> Unfinished:
        """Where an interrupted run with this fingerprint is kept."""
        return Unfinished(folder=self.parent / f".unfinished-{self.fingerprint[:16]}")


def _run(job: Job) -> tuple[Path, dict[str, float]]:
    """Train, test, publish."""
    from isthmus.training.fit import Fit
    from isthmus.training.tracking import training_run

    started = time.perf_counter()
    checkpoint_id = checkpoints.new_id()
    fit = Fit(model=job.model, train=job.train, data=job.data)
    log.info("train %s: %s", job.name, fit.describe())
    progress = job.unfinished.restore(fit.task, fit.optimizer) or Progress()
    if progress.epochs_done:
        log.info(
            "train %s: continuing after epoch %d of %d", job.name, progress.epochs_done, job.train.epochs
        )
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
        fit.run(progress, save=job.unfinished.save, report=run.epoch)
        metrics = fit.test(progress)
        folder = _publish(
            job, fit.best_model(progress), progress, metrics, run=run, checkpoint_id=checkpoint_id
        )
    job.unfinished.discard()
    log.info(
        "train {name}: test_top1 {test_top1:.4f} on {num_test} images, val_top1 {val_top1:.4f} "
        "({weights} weights of epoch {best_epoch:.0f}), {wall:.0f} s, {folder}".format(
            name=job.name,
            num_test=job.data.splits["test"],
            weights=progress.best_weights,
            wall=time.perf_counter() - started,
            folder=folder,
            **metrics,
        )
    )
    return folder, metrics


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
            "head": "single_label",
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
