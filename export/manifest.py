"""What a bundle's manifest says, as a function of values; `bundle.seal` adds the digests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isthmus.export.bundle import SCHEMA_VERSION
from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.parity import Report
from isthmus.lineage.files import canonical_json, sha256_file, sha256_text
from isthmus.lineage.source import code_digest, git_state, library_versions

_LIBRARIES = (
    "isthmus",
    "numpy",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "pillow",
    "tensorflow",
    "timm",
    "torch",
    "torchvision",
)

#: Sections of a recipe that training has used up: the checkpoint's record of them holds.
_TRAINED_SECTIONS = ("data", "model", "train")

#: Of a stage's verdict, what the manifest repeats; parity.json has the rest.
_STAGE_FIELDS = (
    "stage",
    "error",
    "limit",
    "top1_agreement",
    "passed",
    "num_images",
    "problem",
    "note",
    "metric",
)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what an export makes."""
    return library_versions(_LIBRARIES)


def fingerprint(
    checkpoint: Checkpoint, *, config: ExportConfig, recipe: dict[str, Any], data_root: Path
) -> str:
    """One sha256 over all that an export depends on: equal fingerprints, equal bundles."""
    return sha256_text(
        canonical_json(
            {
                "checkpoint": sha256_file(checkpoint.path / "checkpoint.json"),
                "weights": checkpoint.record["weights_sha256"],
                "data": _data_fingerprint(data_root, config.reference_split),
                "config": asdict(config),
                "recipe": trained_recipe(checkpoint, recipe),
                "code": code_digest("isthmus.export"),
                "versions": versions(),
            }
        )
    )


def trained_recipe(checkpoint: Checkpoint, recipe: dict[str, Any]) -> dict[str, Any]:
    """The export's recipe with what the checkpoint was really trained by: `train --epochs 3` is not in the file."""
    trained = checkpoint.record.get("recipe") or {}
    return plain({**recipe, **{key: trained[key] for key in _TRAINED_SECTIONS if key in trained}})


def _data_fingerprint(data_root: Path, split: str) -> Any:
    """The data set's own digest, or where it has none the names, sizes and times of the split's files."""
    try:
        return json.loads((data_root / "dataset.json").read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        folder = data_root / split if (data_root / split).is_dir() else data_root
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        stats = [(path.relative_to(data_root).as_posix(), path.stat()) for path in files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def provisional(
    *, name: str, checkpoint: Checkpoint, recipe: dict[str, Any], images: str = "images of the data set"
) -> dict[str, Any]:
    """What is known before any check: the manifest of a SavedModel that is being verified.

    `images` says where the reference images come from.
    """
    dataset = {key: value for key, value in checkpoint.record["dataset"].items() if key != "root"}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "isthmus": versions().get("isthmus"),
        "source": git_state("."),
        "dataset": dataset,
        "recipe": trained_recipe(checkpoint, recipe),
        "model": checkpoint.model,
        "preprocessing": checkpoint.preprocessing,
        "training": {
            "checkpoint": str(checkpoint.path),
            "checkpoint_sha256": checkpoint.record["weights_sha256"],
            "metrics": checkpoint.record["metrics"],
            "source": checkpoint.record["source"],
            "versions": checkpoint.record["versions"],
            "mlflow": checkpoint.record.get("mlflow") or {},
            "origin": checkpoint.origin or None,
        },
        "reference": {
            "images": images,
            "answers": "ONNX Runtime on the file as it came, fp32"
            if checkpoint.is_onnx
            else "PyTorch, eval mode, fp32",
        },
        "versions": versions(),
        "parity": {"passed": False, "gates": {}, "stages": []},
    }


def complete(
    start: dict[str, Any], *, report: Report, config: ExportConfig, export: dict[str, Any]
) -> dict[str, Any]:
    """All but the digests: `provisional`'s values, the verdict, and how the model was lowered."""
    stages: Sequence[dict[str, Any]] = [stage.as_dict() for stage in report.stages]
    return {
        **start,
        "export": export,
        "parity": {
            "passed": report.passed,
            "gates": asdict(report.gates),
            "served_gates": asdict(config.served_gates),
            "precision": config.precision,
            **({"reduced": asdict(config.reduced)} if config.is_reduced else {}),
            "stages": [{key: stage[key] for key in _STAGE_FIELDS} for stage in stages],
        },
        "overrides": [asdict(override) for override in config.overrides],
    }


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists, paths as text."""
    return json.loads(json.dumps(value, default=str))
