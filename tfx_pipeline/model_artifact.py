"""Reading a Model artifact that BundleImporter made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx.types.artifact import Artifact
from tfx.utils import path_utils

from isthmus.export.bundle import MANIFEST, MANIFEST_COPIES
from isthmus.export.config import GateConfig
from isthmus.export.reference import Reference
from isthmus.lineage.files import OUTSIDE_DIGEST, canonical_json, sha256_file, tree_digest


def saved_model_of(model: Artifact) -> Path:
    """The SavedModel directory of a Model artifact."""
    return Path(path_utils.serving_model_path(model.uri))


def manifest_of(model: Artifact) -> dict[str, Any]:
    """The bundle's manifest."""
    manifest: dict[str, Any] = json.loads(Path(model.uri, MANIFEST).read_text(encoding="utf-8"))
    return manifest


def reference_of(model: Artifact) -> Reference:
    """The bundle's reference images. Raises ExportError when they cannot be read."""
    return Reference.load(Path(model.uri, "reference.npz"))


def gates_of(manifest: dict[str, Any], *, logit_error: float, top1_agreement: float) -> GateConfig:
    """The limits that a bundle's SavedModel is held to: those given, or its own where it computes in bf16 or int8.

    Reduced precision cannot keep fp32's limits; the bundle records the ones that it was exported with, and a
    promotion refuses looser ones than the defaults.
    """
    if manifest["export"].get("precision", "fp32") == "fp32":
        return GateConfig(logit_error=logit_error, top1_agreement=top1_agreement)
    return GateConfig(**manifest["parity"]["served_gates"])


def broken_files(model: Artifact) -> list[str]:
    """Compare the artifact with its manifest. Returns one line for each part that is wrong."""
    manifest = manifest_of(model)
    saved_model = saved_model_of(model)
    broken = []
    if tree_digest(saved_model, exclude=OUTSIDE_DIGEST) != manifest["saved_model_digest"]:
        broken.append("the SavedModel is not the one that the manifest describes (saved_model_digest)")
    if sha256_file(Path(model.uri, "reference.npz")) != manifest["files"]["reference.npz"]["sha256"]:
        broken.append("reference.npz is not the one that the manifest describes")
    for copy in MANIFEST_COPIES:
        path = saved_model / copy
        if not path.is_file() or path.read_text(encoding="utf-8").rstrip("\n") != canonical_json(manifest):
            broken.append(f"{copy} inside the SavedModel is not the bundle's manifest")
    return broken
