"""The export's run in MLflow: which model came in, which two models came out, how far they are from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.bundle import Bundle
from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.parity import Report

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(kw_only=True)
class Recording:
    """An export's run while it is open."""

    run_id: str
    """The MLflow run."""

    torch_model_id: str | None
    """The LoggedModel that training left; None for a checkpoint from elsewhere."""

    reserved: dict[str, str]
    """Ids of the two LoggedModels to come: `onnx` and `saved_model`."""

    @property
    def ids(self) -> dict[str, str]:
        """What the manifest says about the run."""
        return {
            "run_id": self.run_id,
            "onnx_model_id": self.reserved["onnx"],
            "saved_model_id": self.reserved["saved_model"],
        }

    def store(self, bundle: Bundle, report: Report) -> None:
        """Upload the two models and record every stage's error on the SavedModel."""
        from isthmus.lineage import models, tracking

        models.log_onnx_model(
            self.run_id,
            onnx_path=bundle.onnx,
            model_id=self.reserved["onnx"],
            input_model_id=self.torch_model_id,
        )
        models.log_saved_model(
            self.run_id,
            saved_model=bundle.saved_model,
            model_id=self.reserved["saved_model"],
            input_model_id=self.reserved["onnx"],
            tags={"rung": bundle.manifest["export"]["rung"], "parity_passed": report.passed},
        )
        metrics: dict[str, float] = {}
        for stage in report.stages:
            if stage.error is not None:
                metrics[f"parity/{stage.stage}/error"] = stage.error
            if stage.top1_agreement is not None:
                metrics[f"parity/{stage.stage}/top1_agreement"] = stage.top1_agreement
            if stage.metric is not None:
                metrics[f"parity/{stage.stage}/metric_drop"] = stage.metric["drop"]
        tracking.log_metrics(self.run_id, metrics, model_id=self.reserved["saved_model"])


def is_known(bundle: Bundle, client: MlflowClient) -> bool:
    """Whether the store has the bundle's SavedModel, or the bundle names none: it may be used with this store."""
    from mlflow.exceptions import MlflowException

    model_id = (bundle.manifest["export"].get("mlflow") or {}).get("saved_model_id")
    if model_id is None:
        return True
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


@contextlib.contextmanager
def recorded(
    *,
    name: str,
    checkpoint: Checkpoint,
    config: ExportConfig,
    target: Path,
    home: Path,
    tracking_uri: str | None,
    fingerprint: str,
) -> Iterator[Recording]:
    """Open the run of an export; it ends as FAILED, and so do its models, when the block raises."""
    from isthmus.lineage import models, tracking

    tracking.connect(home, tracking_uri)
    tags: dict[str, Any] = {
        "name": name,
        "bundle": str(target),
        "weights_sha256": checkpoint.record["weights_sha256"],
        "fingerprint": fingerprint,
    }
    with tracking.start_stage_run(
        experiment=name, stage="export", run_name=target.name, params=asdict(config), tags=tags
    ) as run:
        torch_model_id = (checkpoint.record.get("mlflow") or {}).get("model_id")
        if torch_model_id:
            tracking.link_models(run.info.run_id, inputs=[torch_model_id])
        reserved = models.reserve(run.info.run_id)
        try:
            yield Recording(run_id=run.info.run_id, torch_model_id=torch_model_id, reserved=reserved)
        except BaseException:
            models.abandon(list(reserved.values()))
            raise
