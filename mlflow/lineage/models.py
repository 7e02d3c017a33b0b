"""LoggedModels of the exported forms, written without importing their frameworks.

An MLflow model is a folder with a file `MLmodel` that says how to load what lies beside it. mlflow.onnx and
mlflow.tensorflow write it for a model in memory; here the files exist already, and `MLmodel` is put beside them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage import tracking
from isthmus.lineage.files import sha256_file, tree_digest
from isthmus.lineage.source import library_versions

if TYPE_CHECKING:
    from mlflow.models import Model

MANIFEST_COPIES = ("assets/manifest.json", "assets.extra/manifest.json")
"""Files of a saved_model/ that hold a copy of the manifest, and so are no part of its own digest."""


def log_onnx_model(
    run_id: str,
    *,
    name: str,
    onnx_path: Path,
    external_data: Sequence[Path] = (),
    input_model_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> str:
    """Store an ONNX file as a LoggedModel, output of the run; loads with `mlflow.onnx` and `mlflow.pyfunc`.

    Returns the model id. Its tags hold `isthmus.onnx_sha256` and, when given, `isthmus.input_model_id` (torch).
    """
    versions = library_versions(("onnx", "onnxruntime"))
    flavors = {
        "onnx": {
            "onnx_version": versions.get("onnx", "unknown"),
            "data": onnx_path.name,
            "providers": ["CPUExecutionProvider"],
            "code": None,
        },
        "python_function": {"loader_module": "mlflow.onnx", "data": onnx_path.name},
    }
    return _log_model(
        run_id,
        name=name,
        model_type="onnx",
        flavors=flavors,
        requirements=versions,
        files=[onnx_path, *external_data],
        tags={
            "format": "onnx",
            "onnx_sha256": sha256_file(onnx_path),
            "input_model_id": input_model_id,
            **(tags or {}),
        },
        params=params,
    )


def log_saved_model(
    run_id: str,
    *,
    name: str,
    saved_model: Path,
    input_model_id: str | None = None,
    signature: str = "serving_default",
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> str:
    """Store a SavedModel folder as a LoggedModel, output of the run, and return the model id.

    `mlflow.tensorflow.load_model` gives the signature as a function; `mlflow.pyfunc.load_model(...).predict(frame)`
    takes a pandas frame with the column `image_bytes` (encoded images) and gives the columns `probabilities`,
    `class_id` and `label`. Tags: `isthmus.saved_model_digest`, `isthmus.input_model_id` (the ONNX model).
    """
    versions = library_versions(("tensorflow",))
    flavors = {
        # "tf1-estimator" is MLflow's name for: a SavedModel, called through one of its signatures.
        "tensorflow": {
            "saved_model_dir": "saved_model",
            "model_type": "tf1-estimator",
            "meta_graph_tags": ["serve"],
            "signature_def_key": signature,
            "code": None,
        },
        "python_function": {"loader_module": "mlflow.tensorflow"},
    }
    return _log_model(
        run_id,
        name=name,
        model_type="saved_model",
        flavors=flavors,
        requirements=versions,
        folders={"saved_model": saved_model},
        signature=_image_signature() if signature == "serving_default" else None,
        tags={
            "format": "saved_model",
            "saved_model_digest": tree_digest(saved_model, exclude=MANIFEST_COPIES),
            "input_model_id": input_model_id,
            **(tags or {}),
        },
        params=params,
    )


def _image_signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    inputs = Schema([ColSpec(DataType.binary, "image_bytes")])
    outputs = Schema(
        [
            ColSpec(Array(DataType.float), "probabilities"),
            ColSpec(DataType.long, "class_id"),
            ColSpec(DataType.binary, "label"),
        ]
    )
    return ModelSignature(inputs=inputs, outputs=outputs)


def _log_model(
    run_id: str,
    *,
    name: str,
    model_type: str,
    flavors: Mapping[str, Mapping[str, Any]],
    requirements: Mapping[str, str],
    files: Sequence[Path] = (),
    folders: Mapping[str, Path] | None = None,
    signature: Any = None,
    tags: Mapping[str, Any],
    params: Mapping[str, Any] | None,
) -> str:
    """Create, upload, finalize, link; a failed upload leaves the model marked FAILED, as MLflow's own do."""
    import mlflow
    from mlflow.models import Model

    client = mlflow.MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    created = client.create_logged_model(
        experiment_id=experiment_id,
        name=name,
        source_run_id=run_id,
        tags=tracking.prefixed(tags),
        params={key: str(value) for key, value in tracking.flatten(params or {}).items()},
        model_type=model_type,
    )
    model_id = str(created.model_id)
    spec = Model(
        run_id=run_id, artifact_path=created.artifact_location, model_id=model_id, signature=signature
    )
    spec.model_size_bytes = sum(path.stat().st_size for path in files) + sum(
        path.stat().st_size
        for folder in (folders or {}).values()
        for path in folder.rglob("*")
        if path.is_file()
    )
    for flavor, options in flavors.items():
        spec.add_flavor(flavor, **options)
    try:
        with tempfile.TemporaryDirectory(prefix="isthmus-mlmodel-") as folder:
            _write_model_files(Path(folder), spec, requirements)
            client.log_model_artifacts(model_id, folder)
        for path in files:
            client.log_model_artifact(model_id, str(path))
        for artifact_path, path in (folders or {}).items():
            client.log_model_artifacts(model_id, str(path), artifact_path)
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.finalize_logged_model(model_id, "READY")
    tracking.link_models(run_id, outputs=[model_id])
    return model_id


def _write_model_files(folder: Path, spec: Model, requirements: Mapping[str, str]) -> None:
    import mlflow
    from mlflow.utils.environment import _PythonEnv

    lines = [
        f"mlflow=={mlflow.__version__}",
        *(f"{name}=={version}" for name, version in requirements.items()),
    ]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    environment = _PythonEnv.current()
    environment.to_yaml(str(folder / "python_env.yaml"))
    spec.flavors["python_function"] |= {
        "python_version": environment.python,
        "env": {"virtualenv": "python_env.yaml"},
    }
    spec.save(str(folder / "MLmodel"))
