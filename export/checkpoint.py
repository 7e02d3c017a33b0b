"""Reading a training checkpoint's record, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.export.errors import ExportError
from isthmus.lineage.files import sha256_file

SCHEMA_VERSION = 1

_WANTED = ("name", "weights_sha256", "model", "preprocessing", "dataset", "metrics", "source", "versions")
_WANTED_OF_MODEL = ("name", "args", "num_classes", "input_size", "head", "labels")
_WANTED_OF_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@dataclass(kw_only=True, frozen=True)
class Checkpoint:
    """A complete checkpoint directory."""

    path: Path
    """The directory, links resolved."""

    record: dict[str, Any]
    """checkpoint.json."""

    @property
    def weights(self) -> Path:
        """The state dict; of a model that came as ONNX, the file as it came."""
        return self.path / ("model.onnx" if self.is_onnx else "model.safetensors")

    @property
    def is_onnx(self) -> bool:
        """Whether this is an ONNX file from elsewhere, which has no torch model."""
        return self.origin.get("kind") == "onnx"

    @property
    def origin(self) -> dict[str, Any]:
        """Where a model that was trained elsewhere came from; empty for one trained here."""
        return dict(self.record.get("origin") or {})

    @property
    def model(self) -> dict[str, Any]:
        """timm name, arguments, input size [C, H, W], head and labels."""
        return dict(self.record["model"])

    @property
    def preprocessing(self) -> dict[str, Any]:
        """timm's resolved data configuration of the evaluation transform."""
        return dict(self.record["preprocessing"])

    def check_weights(self) -> None:
        """Raise ExportError when the weights are not the ones that the record names."""
        actual = sha256_file(self.weights)
        if actual != self.record["weights_sha256"]:
            raise ExportError(
                f"{self.weights} has sha256 {actual[:12]}…, but checkpoint.json says "
                f"{str(self.record['weights_sha256'])[:12]}…: changed after training; train again"
            )


def read(path: Path) -> Checkpoint:
    """Read and check the record of a checkpoint directory.

    Raises:
        ExportError: It is not a complete checkpoint, or of a schema that this version does not know.
    """
    if not path.is_dir():
        raise ExportError(f"no checkpoint at {path}; run `isthmus train` first or give another --checkpoint")
    path = path.resolve()
    try:
        record = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(
            f"{path} holds no checkpoint.json: an unfinished training; run it to its end"
        ) from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path / 'checkpoint.json'} cannot be read: {error}") from error
    _check_record(record, where=path / "checkpoint.json")
    checkpoint = Checkpoint(path=path, record=record)
    if not checkpoint.weights.is_file():
        raise ExportError(f"{path} holds no {checkpoint.weights.name}; train again")
    return checkpoint


def _check_record(record: Any, *, where: Path) -> None:
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        version = record.get("schema_version") if isinstance(record, dict) else None
        raise ExportError(f"{where} has schema version {version!r}; this isthmus reads {SCHEMA_VERSION}")
    missing = [key for key in _WANTED if key not in record]
    missing += [f"model.{key}" for key in _WANTED_OF_MODEL if key not in (record.get("model") or {})]
    missing += [
        f"preprocessing.{key}"
        for key in _WANTED_OF_PREPROCESSING
        if key not in (record.get("preprocessing") or {})
    ]
    if missing:
        raise ExportError(f"{where} lacks {', '.join(missing)}")
    model = record["model"]
    if model["head"] not in ("single_label", "multi_label"):
        raise ExportError(f"{where}: model.head is {model['head']!r}; known are single_label and multi_label")
    if len(model["labels"]) != model["num_classes"] or len(set(model["labels"])) != len(model["labels"]):
        raise ExportError(
            f"{where}: {model['num_classes']} classes but {len(set(model['labels']))} different labels"
        )
    input_size = list(record["preprocessing"]["input_size"])
    if len(input_size) != 3 or input_size[0] != 3:
        raise ExportError(f"{where}: input size {input_size}; the bridge carries RGB models, [3, H, W]")
