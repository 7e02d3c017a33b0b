"""LoggedModels of the exported forms, written without importing their frameworks.

An MLflow model is a folder with a file `MLmodel` that says how to load what lies beside it. mlflow.onnx and
mlflow.tensorflow write it for a model in memory; here the files exist already and `MLmodel` is put beside
them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from isthmus.lineage import tracking
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import MANIFEST_COPIES, OUTSIDE_DIGEST, read_json, sha256_file, tree_digest
from isthmus.lineage.places import is_remote, local_copy
from isthmus.lineage.source import library_versions

Format = Literal["onnx", "saved_model"]

_MANIFESTS = ("manifest.json", *reversed(MANIFEST_COPIES))


def manifest_at(place: str) -> dict[str, Any] | None:
    """The manifest of a bundle or a SavedModel wherever it is; None where there is none that can be read."""
    if not is_remote(place):
        return read_manifest(Path(place))
    for name in _MANIFESTS:
        try:
            with local_copy(f"{place}/{name}") as file:
                value = read_json(file)
        except (LineageError, ValueError):
            continue
        if isinstance(value, dict) and "saved_model_digest" in value:
            return value
    return None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bundle or of a SavedModel folder; None where there is none that can be read."""
    for name in _MANIFESTS:
        if (folder / name).is_file():
            try:
                value = read_json(folder / name)
            except (ValueError, OSError):
                continue
            if isinstance(value, dict) and "saved_model_digest" in value:
                return value
    return None


def reserve(run_id: str, formats: Sequence[Format] = ("onnx", "saved_model")) -> dict[str, str]:
    """{format: model id} of new LoggedModels that wait for their files (status PENDING).

    The manifest names these ids and lies inside the SavedModel, so they must exist before the files are
    final. Give each to `log_onnx_model` or `log_saved_model`, or to `abandon` when the export fails.
    """
    client = _client()
    experiment_id = client.get_run(run_id).info.experiment_id
    return {
        form: str(
            client.create_logged_model(
                experiment_id=experiment_id, name=form, source_run_id=run_id, model_type=form
            ).model_id
        )
        for form in formats
    }


def abandon(model_ids: Sequence[str]) -> None:
    """Mark reserved LoggedModels as FAILED: their files never came."""
    client = _client()
    for model_id in model_ids:
        client.finalize_logged_model(model_id, "FAILED")


def log_onnx_model(
    run_id: str,
    *,
    onnx_path: Path,
    external_data: Sequence[Path] = (),
    model_id: str | None = None,
    input_model_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> str:
    """Store an ONNX file as a LoggedModel, output of the run; it loads with `mlflow.onnx` and
    `mlflow.pyfunc`.

    `model_id` is one that `reserve` gave, `input_model_id` the torch model's. Returns the model id. Its tags
    hold `isthmus.onnx_sha256` and `isthmus.input_model_id`.
    """
    versions = library_versions(("onnx", "onnxruntime"))
    content = _Content(
        flavors={
            "onnx": {
                "onnx_version": versions.get("onnx", "unknown"),
                "data": onnx_path.name,
                "providers": ["CPUExecutionProvider"],
                "code": None,
            },
            "python_function": {"loader_module": "mlflow.onnx", "data": onnx_path.name},
        },
        requirements=versions,
        files=[onnx_path, *external_data],
    )
    own = {"format": "onnx", "onnx_sha256": sha256_file(onnx_path), "input_model_id": input_model_id}
    model_id = model_id or reserve(run_id, ["onnx"])["onnx"]
    return _store(run_id, model_id, content, tags=own | dict(tags or {}), params=params or {})


def log_saved_model(
    run_id: str,
    *,
    saved_model: Path,
    signature: str = "serving_default",
    model_id: str | None = None,
    input_model_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> str:
    """Store a SavedModel folder as a LoggedModel, output of the run, and return the model id.

    `mlflow.tensorflow.load_model` gives the signature as a function.
    `mlflow.pyfunc.load_model(…).predict(frame)` takes a pandas frame with the column `image_bytes` (encoded
    images) and gives the columns `probabilities`, `class_id` and `label`. Tags: `isthmus.saved_model_digest`,
    `isthmus.input_model_id` (the ONNX model).
    """
    content = _Content(
        flavors={
            # "tf1-estimator" is MLflow's name for: a SavedModel, called through one of its signatures.
            "tensorflow": {
                "saved_model_dir": "saved_model",
                "model_type": "tf1-estimator",
                "meta_graph_tags": ["serve"],
                "signature_def_key": signature,
                "code": None,
            },
            "python_function": {"loader_module": "mlflow.tensorflow"},
        },
        requirements=library_versions(("tensorflow",)),
        folders={"saved_model": saved_model},
        signature=_image_signature() if signature == "serving_default" else None,
    )
    own = {
        "format": "saved_model",
        "saved_model_digest": tree_digest(saved_model, exclude=OUTSIDE_DIGEST),
        "input_model_id": input_model_id,
    }
    model_id = model_id or reserve(run_id, ["saved_model"])["saved_model"]
    return _store(run_id, model_id, content, tags=own | dict(tags or {}), params=params or {})


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What a LoggedModel's folder is to hold, and how MLflow loads it."""

    flavors: dict[str, dict[str, Any]]
    requirements: Mapping[str, str]
    files: Sequence[Path] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    signature: Any = None

    @property
    def num_bytes(self) -> int:
        inside = (path for folder in self.folders.values() for path in folder.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in (*self.files, *inside))


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def _image_signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    outputs = [
        ColSpec(Array(DataType.float), "probabilities"),
        ColSpec(DataType.long, "class_id"),
        ColSpec(DataType.binary, "label"),
    ]
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image_bytes")]), outputs=Schema(outputs))


def _store(
    run_id: str, model_id: str, content: _Content, *, tags: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """Upload, tag, finalize, link; a failed upload leaves the model marked FAILED, as MLflow's own does."""
    client = _client()
    try:
        location = client.get_logged_model(model_id).artifact_location
        with tempfile.TemporaryDirectory(prefix="isthmus-mlmodel-") as folder:
            _write_model_files(Path(folder), content, run_id=run_id, model_id=model_id, location=location)
            client.log_model_artifacts(model_id, folder)
        for path in content.files:
            client.log_model_artifact(model_id, str(path))
        for artifact_path, path in content.folders.items():
            client.log_model_artifacts(model_id, str(path), artifact_path)
        client.set_logged_model_tags(model_id, tracking.prefixed(tags))
        if params:
            flat = tracking.flatten(params)
            client.log_model_params(model_id, {key: str(value) for key, value in flat.items()})
    except BaseException:
        abandon([model_id])
        raise
    client.finalize_logged_model(model_id, "READY")
    tracking.link_models(run_id, outputs=[model_id])
    return model_id


def _write_model_files(folder: Path, content: _Content, *, run_id: str, model_id: str, location: str) -> None:
    """MLmodel, requirements.txt and python_env.yaml, as mlflow's own `log_model` leaves them."""
    from importlib.metadata import version

    from mlflow.models import Model
    from mlflow.utils.environment import _PythonEnv

    pinned = {"mlflow": version("mlflow"), **content.requirements}
    (folder / "requirements.txt").write_text(
        "".join(f"{name}=={number}\n" for name, number in pinned.items())
    )
    environment = _PythonEnv.current()
    environment.to_yaml(str(folder / "python_env.yaml"))
    spec = Model(run_id=run_id, artifact_path=location, model_id=model_id, signature=content.signature)
    spec.model_size_bytes = content.num_bytes
    for flavor, options in content.flavors.items():
        spec.add_flavor(flavor, **options)
    spec.add_flavor(
        "python_function",
        **content.flavors["python_function"],
        python_version=environment.python,
        env={"virtualenv": "python_env.yaml"},
    )
    spec.save(str(folder / "MLmodel"))
