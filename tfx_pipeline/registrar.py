"""Registrar: tells MLflow what this pipeline measured and, when a model was pushed, registers the version.

Whatever the verdict, one MLflow run of the stage `pipeline` records the metrics and the reasons. A pushed model
becomes a registered version: the same content once, however often the pipeline runs or is killed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils

from isthmus.lineage.files import sha256_file
from isthmus.tfx_pipeline.artifacts import ParityReport, Registration, Verdict
from isthmus.tfx_pipeline.errors import NotPushedError
from isthmus.tfx_pipeline.evaluator import PLOTS, read_evaluation
from isthmus.tfx_pipeline.model_artifact import manifest_of
from isthmus.tfx_pipeline.pusher import NOT_PUSHED_BECAUSE

REGISTERED_VERSION = "registered_version"
MLFLOW_RUN_ID = "mlflow_run_id"
_RECORD = "registration.json"


class Executor(base_executor.BaseExecutor):
    """Writes the MLflow run, and the version when there is one to write."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Register; the artifact's property `registered_version` is 0 when nothing was pushed.

        Raises:
            LineageError: The registry cannot be reached or refuses.
            NotPushedError: On a cluster, a gate has refused the model; that is on record by then.
        """
        from isthmus.lineage import registry, tracking

        inputs = {key: artifacts[0] for key, artifacts in input_dict.items()}
        manifest, pushed = manifest_of(inputs["model"]), inputs["pushed_model"]
        evaluation = read_evaluation(inputs["evaluation"])
        metrics = evaluation.metrics()
        if (error := Verdict.read(inputs["parity"]).details.get("error")) is not None:
            metrics["parity/pipeline/error"] = error
        costs = Verdict.read(inputs["infra_blessing"]).details.get("costs") or {}
        metrics |= {f"server/{key}": float(value) for key, value in costs.items()}
        tracking.connect(Path(exec_properties["home"]), exec_properties["tracking_uri"] or None)
        was_pushed = pushed.get_int_custom_property("pushed") == 1
        mlmd = self._mlmd_ids(inputs, exec_properties["run"])
        with tracking.start_stage_run(
            experiment=exec_properties["name"],
            stage="pipeline",
            run_name=Path(exec_properties["bundle"]).name,
            params=json.loads(exec_properties["settings"]),
            tags={
                "name": exec_properties["name"],
                "bundle": exec_properties["bundle"],
                "saved_model_digest": manifest["saved_model_digest"],
                "pushed": was_pushed,
                "not_pushed_because": pushed.get_string_custom_property(NOT_PUSHED_BECAUSE) or None,
                **{f"mlmd_{key}": value for key, value in mlmd.items()},
            },
        ) as run:
            self._log(run.info.run_id, manifest, json.loads(exec_properties["dataset"]), metrics)
            _log_plots(run.info.run_id, inputs["evaluation"])
            version = None
            if was_pushed:
                version = registry.register_version(
                    name=exec_properties["name"],
                    manifest=manifest,
                    bundle=exec_properties["bundle"],
                    # The artifact's own copy: the bundle may be in an object store.
                    manifest_sha256=sha256_file(Path(inputs["model"].uri, "manifest.json")),
                    pushed_path=pushed.get_string_custom_property("pushed_destination"),
                    served_version=int(pushed.get_string_custom_property("pushed_version")),
                    run_id=run.info.run_id,
                    metrics=metrics,
                    mlmd=mlmd,
                )
        (registration,) = output_dict["registration"]
        registration.set_string_custom_property(MLFLOW_RUN_ID, run.info.run_id)
        registration.set_int_custom_property(REGISTERED_VERSION, version.version if version else 0)
        with fileio.open(os.path.join(registration.uri, _RECORD), "w") as file:
            file.write(
                json.dumps(
                    {"version": version.to_dict() if version else None, "metrics": metrics}, default=str
                )
            )
        if exec_properties["on_cluster"] and not was_pushed:
            raise NotPushedError(json.loads(pushed.get_string_custom_property(NOT_PUSHED_BECAUSE)))

    def _mlmd_ids(self, inputs: dict[str, types.Artifact], run: str) -> dict[str, Any]:
        ids: dict[str, Any] = {f"{key}_artifact_id": artifact.id for key, artifact in inputs.items()}
        if run or self._context is not None:
            ids["run"] = run or self._context.pipeline_run_id
        return ids

    def _log(
        self, run_id: str, manifest: dict[str, Any], dataset: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        from isthmus.lineage import tracking

        evaluated_on = tracking.log_dataset(
            run_id,
            name=dataset["name"],
            digest=dataset["digest"],
            source=dataset["source"],
            context="evaluation",
            profile=dataset["splits"],
        )
        model_id = (manifest["export"].get("mlflow") or {}).get("saved_model_id")
        if model_id:
            tracking.link_models(run_id, inputs=[model_id])
        tracking.log_metrics(run_id, metrics, model_id=model_id, dataset=evaluated_on)


def _log_plots(run_id: str, evaluation: types.Artifact) -> None:
    """Upload the evaluation's pictures to the run."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="isthmus-plots-") as folder:
        for plot in PLOTS:
            copy = os.path.join(folder, plot)
            io_utils.copy_file(os.path.join(evaluation.uri, plot), copy)
            mlflow.MlflowClient().log_artifact(run_id, copy, "evaluation")


class RegistrarSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Registrar."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "name": ExecutionParameter(type=str),
        "bundle": ExecutionParameter(type=str),
        "home": ExecutionParameter(type=str),
        "tracking_uri": ExecutionParameter(type=str),
        "settings": ExecutionParameter(type=str),
        "dataset": ExecutionParameter(type=str),
        "run": ExecutionParameter(type=str),
        "on_cluster": ExecutionParameter(type=int),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=standard_artifacts.Model),
        "pushed_model": ChannelParameter(type=standard_artifacts.PushedModel),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "parity": ChannelParameter(type=ParityReport),
        "infra_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
    }
    OUTPUTS = {"registration": ChannelParameter(type=Registration)}  # noqa: RUF012


class Registrar(base_component.BaseComponent):
    """Writes the pipeline's part of the lineage."""

    SPEC_CLASS = RegistrarSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        model: types.BaseChannel,
        pushed_model: types.BaseChannel,
        evaluation: types.BaseChannel,
        parity: types.BaseChannel,
        infra_blessing: types.BaseChannel,
        name: str,
        bundle: str,
        home: str,
        tracking_uri: str,
        settings: str,
        dataset: str,
        code: str,
        run: str = "",
        on_cluster: bool = False,
    ) -> None:
        """Describe one run.

        Args:
            model: The candidate.
            pushed_model: The Pusher's output.
            evaluation: The Evaluator's metrics.
            parity: ParityValidator's verdict.
            infra_blessing: ServerValidator's verdict, for what the server costs.
            name: Registered model name, and the experiment.
            bundle: The bundle's directory, or its place in an object store.
            home: The home folder, where the registry is unless `tracking_uri` says otherwise.
            tracking_uri: The MLflow store, or "".
            settings: The pipeline's configuration as JSON; recorded as parameters.
            dataset: What was evaluated on, as JSON (see `image_folder.dataset_record`).
            code: Digest of this package's code; for the cache.
            run: The orchestrator's id of this run, where TFX does not know it.
            on_cluster: Whether a refused model is to fail the task once that is on record. On a cluster nothing else
                would say so: every gate has ended well, with a verdict.
        """
        super().__init__(
            RegistrarSpec(
                model=model,
                pushed_model=pushed_model,
                evaluation=evaluation,
                parity=parity,
                infra_blessing=infra_blessing,
                name=name,
                bundle=bundle,
                home=home,
                tracking_uri=tracking_uri,
                settings=settings,
                dataset=dataset,
                run=run,
                on_cluster=int(on_cluster),
                code=code,
                registration=types.Channel(type=Registration),
            )
        )
