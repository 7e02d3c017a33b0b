"""BundleImporter: a bundle becomes a TFX Model artifact.

<model>/Format-Serving/   the bundle's saved_model/, where every TFX component looks for it
<model>/manifest.json     where it came from; the main links are properties of the artifact as well
<model>/reference.npz     what ParityValidator and ServerValidator compare with
<model>/parity.json       export's own verdict
"""

from __future__ import annotations

import os
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

from isthmus.export import bundle as bundles
from isthmus.tfx_pipeline import remote
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.heads import check_head

COPIED = ("manifest.json", "reference.npz", "parity.json")


def manifest_links(manifest: dict[str, Any]) -> dict[str, str]:
    """The manifest's main links, by the name of the artifact's property; unknown ones are left out."""
    training, export, dataset = manifest["training"], manifest["export"], manifest["dataset"]
    links = {
        "name": manifest["name"],
        "created": manifest["created"],
        "git_commit": manifest["source"].get("commit"),
        "dataset_name": dataset.get("name"),
        "dataset_digest": dataset.get("digest"),
        "timm_model": manifest["model"].get("name"),
        "checkpoint_sha256": training.get("checkpoint_sha256"),
        "training_run_id": (training.get("mlflow") or {}).get("run_id"),
        "torch_model_id": (training.get("mlflow") or {}).get("model_id"),
        "onnx_sha256": export.get("onnx_sha256"),
        "rung": export.get("rung"),
        "export_run_id": (export.get("mlflow") or {}).get("run_id"),
        "onnx_model_id": (export.get("mlflow") or {}).get("onnx_model_id"),
        "saved_model_id": (export.get("mlflow") or {}).get("saved_model_id"),
        "saved_model_digest": manifest["saved_model_digest"],
    }
    return {key: str(value) for key, value in links.items() if value is not None}


class Executor(base_executor.BaseExecutor):
    """Checks every hash of the bundle, then copies what the pipeline needs of it."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],  # noqa: ARG002 - TFX's contract
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write the Model artifact.

        Raises:
            ExportError: There is no bundle.
            PipelineError: A file is not what the manifest says, or the model is a multi-label one.
        """
        (model,) = output_dict["model"]
        with remote.local_tree(exec_properties["bundle"]) as folder:
            self._import(bundles.load(folder), model, named=exec_properties["bundle"])

    def _import(self, bundle: bundles.Bundle, model: types.Artifact, *, named: str) -> None:
        if broken := bundle.verify():
            raise PipelineError(f"the bundle {named} is damaged: {'; '.join(broken[:5])}; export it again")
        check_head(bundle.manifest, bundle=named)
        io_utils.copy_dir(str(bundle.saved_model), path_utils.serving_model_dir(model.uri))
        for name in COPIED:
            io_utils.copy_file(str(bundle.path / name), os.path.join(model.uri, name), overwrite=True)
        for key, value in manifest_links(bundle.manifest).items():
            model.set_string_custom_property(key, value)


class BundleImporterSpec(ComponentSpec):
    """Inputs, outputs and parameters of BundleImporter."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "bundle": ExecutionParameter(type=str),
        "manifest_sha256": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}  # noqa: RUF012
    OUTPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012


class BundleImporter(base_component.BaseComponent):
    """Brings a published bundle into the pipeline."""

    SPEC_CLASS = BundleImporterSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, *, bundle: str, manifest_sha256: str, code: str) -> None:
        """Describe one run.

        Args:
            bundle: The bundle's directory, or its place in an object store.
            manifest_sha256: Digest of its manifest.json, which holds the digests of all else; for the cache.
            code: Digest of this package's code; for the cache.
        """
        super().__init__(
            BundleImporterSpec(
                bundle=bundle,
                manifest_sha256=manifest_sha256,
                code=code,
                model=types.Channel(type=standard_artifacts.Model),
            )
        )
