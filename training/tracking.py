"""What training tells MLflow, through isthmus.lineage: one run an attempt, one LoggedModel a checkpoint."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage import tracking
from isthmus.lineage.source import git_diff
from isthmus.training.backlog import Backlog
from isthmus.training.data import PreparedData

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

REQUIREMENTS = ("torch", "torchvision", "timm")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The open MLflow run of one training attempt."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    dataset: tracking.DatasetRef
    backlog: Backlog

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one epoch (its number is MLflow's step); they wait while the server does not answer."""
        self.backlog.add(
            functools.partial(
                tracking.log_metrics,
                self.run_id,
                dict(metrics),
                step=number,
                timestamp_ms=int(time.time() * 1000),
            )
        )

    def pictures(self, figures: Mapping[str, Figure]) -> None:
        """Figures by file name, as artifacts; waits for the server as `checkpoint` does."""
        import mlflow

        for name, figure in figures.items():
            self.backlog.settled(functools.partial(mlflow.log_figure, figure, f"pictures/{name}"))

    def checkpoint(self, model: torch.nn.Module, **what: Any) -> str:
        """As `_log_checkpoint`, when the server answers. Raises TrainingError when it stays away."""
        return self.backlog.settled(functools.partial(self._log_checkpoint, model, **what))

    def _log_checkpoint(
        self,
        model: torch.nn.Module,
        *,
        path: Path,
        input_size: list[int],
        num_classes: int,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> str:
        """Store the model (moved to the CPU) as a LoggedModel with its signature; returns the model id."""
        import mlflow
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        from isthmus.lineage.source import library_versions

        versions = library_versions(REQUIREMENTS)
        floats = np.dtype(np.float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(floats, (-1, *input_size), name=None)]),
            outputs=Schema([TensorSpec(floats, (-1, num_classes), name=None)]),
        )
        # MLflow warns that it pickles. The checkpoint is safetensors; this is a copy for mlflow.pytorch,
        # whose other format traces the model with torch.export, and not every timm model survives that.
        logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
        info = mlflow.pytorch.log_model(
            model.cpu(),
            name="torch",
            signature=signature,
            # Given, so that MLflow does not load the model in another process to find out.
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
            model_type="torch",
            serialization_format="pickle",
            tags=tracking.prefixed({"format": "torch", "checkpoint": str(path), **tags}),
        )
        model_id = str(info.model_id)
        tracking.log_metrics(self.run_id, metrics, model_id=model_id, dataset=self.dataset)
        tracking.log_tags(self.run_id, {"checkpoint": str(path), **tags})
        return model_id


@contextmanager
def training_run(
    *,
    name: str,
    run_name: str,
    home: Path,
    tracking_uri: str | None,
    recipe: Mapping[str, Any],
    data: PreparedData,
    tags: Mapping[str, str],
    resumes: str | None,
) -> Iterator[Run]:
    """An MLflow run in the experiment `name`, FAILED when the block raises.

    `resumes` is the run of the attempt that was interrupted: it is marked KILLED if it still says RUNNING.
    """
    import mlflow

    client = tracking.connect(home, tracking_uri)
    if resumes is not None:
        _close_killed_run(client, resumes)
    with tracking.start_stage_run(
        experiment=name,
        stage="train",
        run_name=run_name,
        params=recipe,
        tags={"name": name, "resumes": resumes, **tags},
        # system_metrics samples them, also while the server is away.
        log_system_metrics=False,
    ) as run:
        dataset = tracking.log_dataset(
            run.info.run_id,
            name=data.name,
            digest=data.digest,
            source=str(data.root),
            profile={"splits": data.splits, "classes": len(data.classes), "source": data.source},
        )
        if diff := git_diff():
            mlflow.log_text(diff, "source/git.diff")
        yield Run(
            backlog=Backlog(tracking_uri=client.tracking_uri),
            tracking_uri=client.tracking_uri,
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            dataset=dataset,
        )


def _close_killed_run(client: Any, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status="KILLED")
    except MlflowException as problem:
        log.debug("the interrupted run %s is not in this store: %s", run_id, problem)
