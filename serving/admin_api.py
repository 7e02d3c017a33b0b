"""What the admin page shows and does, as plain data: the models with their versions, and one prediction."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.serving import inference, json_response
from isthmus.serving.errors import RequestError
from isthmus.serving.manager import ModelManager
from isthmus.serving.metrics import Metrics
from isthmus.serving.routing import ModelRef
from isthmus.serving.savedmodel import DEFAULT_SIGNATURE, LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING

__all__ = ["AdminApi"]

_MANIFEST = Path("assets.extra") / "manifest.json"
_MAX_MANIFEST_BYTES = 2**22


class AdminApi:
    """The models that run, for the admin page."""

    def __init__(self, manager: ModelManager, metrics: Metrics, *, timeout_ms: int) -> None:
        self._manager = manager
        self._metrics = metrics
        self._options = inference.CallOptions(timeout_ms=timeout_ms)
        self._lineages: dict[Path, dict[str, Any]] = {}

    def overview(self) -> dict[str, Any]:
        """Models, versions, labels, states, lineage and latencies, as JSON values."""
        models = [
            {
                "name": settings.name,
                "base_path": str(settings.base_path),
                "policy": settings.policy.kind,
                "takes_images": self._takes_images(settings.name),
                "versions": [
                    {
                        "version": str(servable.version),
                        "state": servable.state.name,
                        "error": "" if servable.error is None else str(servable.error),
                        "labels": sorted(
                            label for label, number in labels.items() if number == servable.version
                        ),
                        "lineage": self._lineage(servable.path),
                    }
                    for servable in servables
                ],
            }
            for settings, servables, labels in self._manager.overview()
        ]
        return {"models": models, "latencies": self._metrics.latencies()}

    def predict_image(self, name: str, version: int | None, image: bytes) -> bytes:
        """The outputs for one encoded image, as the REST API's JSON.

        Raises:
            RequestError: what the API would answer; INVALID_ARGUMENT when the model takes no encoded images.
        """
        with self._manager.model(ModelRef(name, version)) as (model, _):
            alias = _image_input(model)
            if alias is None:
                raise RequestError(
                    Code.INVALID_ARGUMENT,
                    f"{name} takes no encoded images: {DEFAULT_SIGNATURE} has not one input, a string",
                )
            value = np.array([image], object)
            outputs = inference.predict(model, "", {alias: value}, self._options)
        return json_response.predictions(outputs, row_format=False)

    def manifest(self, name: str, version: int) -> bytes:
        """The manifest of a version's bundle: where it came from, in full.

        Raises:
            RequestError: NOT_FOUND when the version is unknown or has none.
        """
        (servable,) = self._manager.statuses(ModelRef(name, version))
        path = servable.path / _MANIFEST
        try:
            if path.stat().st_size <= _MAX_MANIFEST_BYTES:
                return path.read_bytes()
        except OSError:
            pass
        raise RequestError(Code.NOT_FOUND, f"{name} version {version} has no {_MANIFEST}")

    def _takes_images(self, name: str) -> bool:
        try:
            with self._manager.model(ModelRef(name)) as (model, _):
                return _image_input(model) is not None
        except RequestError:
            return False

    def _lineage(self, path: Path) -> dict[str, Any]:
        if path not in self._lineages:
            self._lineages[path] = _lineage(path / _MANIFEST)
        return self._lineages[path]


def _image_input(model: LoadedModel) -> str | None:
    """The default signature's one input, if it is a string."""
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    inputs = {} if signature is None else signature.inputs
    (alias,) = inputs if len(inputs) == 1 else (None,)
    return alias if alias is not None and inputs[alias].dtype == DT_STRING else None


def _lineage(manifest_path: Path) -> dict[str, Any]:
    """Where a version came from, by its bundle's manifest; nothing for a SavedModel without one."""
    try:
        if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
            return {}
        manifest = json.loads(manifest_path.read_bytes())
    except (OSError, ValueError):
        return {}

    def at(*keys: str) -> str:
        value: Any = manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return "" if value is None else str(value)

    facts = {
        "model": at("model", "name"),
        "created": at("created"),
        "dataset": at("dataset", "name"),
        "commit": at("source", "commit")[:12],
        "checkpoint": at("training", "checkpoint_sha256")[:12],
        "training run": at("training", "mlflow", "run_id"),
        "export run": at("export", "mlflow", "run_id"),
        "parity": {"True": "passed", "False": "FAILED"}.get(at("parity", "passed"), ""),
    }
    return {name: text for name, text in facts.items() if text}
