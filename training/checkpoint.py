"""The checkpoint: what training leaves and export takes, a folder that is complete or not seen at all.

model.safetensors and config.json are timm's own format (`timm.create_model("local-dir:<folder>",
pretrained=True)` loads them); checkpoint.json, written last, says where the weights come from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage.files import canonical_json, point_latest, sha256_file, sha256_text, write_json
from isthmus.lineage.source import code_digest
from isthmus.training import weights
from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.data import PreparedData

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
CHECKPOINT_JSON = "checkpoint.json"
LATEST = "latest"
VERSIONED_LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "pillow", "numpy", "mlflow")


def fingerprint(
    *, name: str, model: ModelConfig, train: TrainConfig, data: PreparedData, processes: int = 1
) -> str:
    """SHA-256 of everything that decides the weights: model and train sections, the weights to start from and to
    learn from, data digest, number of processes, this package's code."""
    teacher = train.distill.weights if train.distill is not None else None
    files = {"model": model.weights, "teacher": teacher}
    return sha256_text(
        canonical_json(
            {
                "name": name,
                "model": _without_paths(dataclasses.asdict(model)),
                "train": _without_paths(dataclasses.asdict(train)),
                "weights": {role: weights.digest(file) for role, file in files.items() if file is not None},
                "dataset": {"digest": data.digest, "classes": list(data.classes)},
                "processes": processes,
                "code": code_digest("isthmus.training"),
            }
        )
    )


def _without_paths(value: Any) -> Any:
    """A file counts by its content, wherever it lies."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items() if not isinstance(each, Path)}
    return value


def new_id() -> str:
    """`YYYYmmdd-HHMMSS-xxxx`, UTC: sorts by time, and two of one second differ."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def read(folder: Path) -> dict[str, Any] | None:
    """checkpoint.json of a complete checkpoint; None for anything else."""
    try:
        record = json.loads((folder / CHECKPOINT_JSON).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("schema_version") == SCHEMA_VERSION else None


def find(parent: Path, wanted: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint with this fingerprint whose weights are what checkpoint.json says."""
    for folder in sorted(parent.glob("[0-9]*"), reverse=True):
        record = read(folder)
        if record is None or record.get("fingerprint") != wanted:
            continue
        if (folder / WEIGHTS).is_file() and sha256_file(folder / WEIGHTS) == record["weights_sha256"]:
            return folder, record
        log.warning("checkpoint %s: its weights are damaged or missing, not used", folder)
    return None


def latest_is(parent: Path, folder: Path) -> bool:
    """Whether the link `latest` leads to this checkpoint."""
    return (parent / LATEST).is_symlink() and (parent / LATEST).resolve() == folder.resolve()


def point(parent: Path, folder: Path) -> None:
    """Make `latest` lead to this checkpoint."""
    point_latest(parent / LATEST, folder)


def write_model(
    folder: Path,
    model: torch.nn.Module,
    *,
    labels: tuple[str, ...],
    args: dict[str, Any],
    preprocessing: dict[str, Any],
) -> str:
    """model.safetensors and config.json, as timm writes them for the Hugging Face hub; returns the weights'
    SHA-256."""
    from timm.models import save_for_hf

    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(labels)},
        model_args=args,
        safe_serialization=True,
        data_config=preprocessing,
    )
    return sha256_file(folder / WEIGHTS)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """checkpoint.json: from here on the folder is complete."""
    write_json(folder / CHECKPOINT_JSON, {"schema_version": SCHEMA_VERSION, **record})
