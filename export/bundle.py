"""The bundle: the directory that export writes, the pipeline imports, and a server serves.

    manifest.json  model.onnx  reference.npz  parity.json  parity.png  saved_model/

manifest.json records where everything came from, with the sha256 of every file. The same object travels
inside saved_model/ twice: `assets/` (the graph's `manifest` signature answers with it) and `assets.extra/`.
A bundle is published by one rename; what has no manifest.json, or lies in a hidden folder, is not a bundle.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isthmus.export.errors import ExportError
from isthmus.lineage.files import (
    MANIFEST_COPIES,
    OUTSIDE_DIGEST,
    canonical_json,
    file_table,
    point_latest,
    publish_directory,
    read_json,
    tree_digest,
    write_json,
    write_text,
)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

_PARTS = ("model.onnx", "reference.npz", "parity.json", "parity.png", "saved_model/saved_model.pb")
_WANTED = (
    "name",
    "created",
    "source",
    "dataset",
    "recipe",
    "model",
    "preprocessing",
    "training",
    "export",
    "versions",
    "saved_model_digest",
    "parity",
    "overrides",
    "files",
)


@dataclass(kw_only=True, frozen=True)
class Bundle:
    """A published bundle on disk."""

    path: Path
    """The directory, links resolved."""

    manifest: dict[str, Any]
    """manifest.json."""

    @property
    def saved_model(self) -> Path:
        """The SavedModel directory."""
        return self.path / "saved_model"

    @property
    def onnx(self) -> Path:
        """The ONNX model."""
        return self.path / "model.onnx"

    @property
    def reference(self) -> Path:
        """The reference images; read them with `reference.Reference.load`."""
        return self.path / "reference.npz"

    @property
    def litert(self) -> Path | None:
        """model.tflite; None where the export was not asked for it."""
        path = self.path / "model.tflite"
        return path if path.is_file() else None

    def verify(self) -> list[str]:
        """Compare every file with the manifest. Returns one line for each that is wrong; empty: intact."""
        actual = file_table(self.path, exclude=_unlisted())
        listed = self.manifest["files"]
        broken = [f"{name}: missing" for name in sorted(set(listed) - set(actual))]
        broken += [f"{name}: not in the manifest" for name in sorted(set(actual) - set(listed))]
        broken += [
            f"{name}: sha256 {actual[name]['sha256'][:12]}… instead of {listed[name]['sha256'][:12]}…"
            for name in sorted(set(actual) & set(listed))
            if actual[name]["sha256"] != listed[name]["sha256"]
        ]
        if tree_digest(self.saved_model, exclude=OUTSIDE_DIGEST) != self.manifest["saved_model_digest"]:
            broken.append("saved_model: its digest is not the manifest's saved_model_digest")
        expected = canonical_json(self.manifest)
        for copy in MANIFEST_COPIES:
            path = self.saved_model / copy
            if not path.is_file() or path.read_text(encoding="utf-8") != expected:
                broken.append(f"saved_model/{copy}: not the same as {MANIFEST}")
        return broken


def load(path: Path) -> Bundle:
    """Open a bundle. Its hashes are not computed: call `verify` where they matter.

    Raises:
        ExportError: No complete bundle there, or one of a schema that this version does not know.
    """
    path = Path(path)
    if not path.is_dir():
        raise ExportError(f"no bundle at {path}; run `isthmus export` first")
    path = path.resolve()
    if not (path / MANIFEST).is_file():
        raise ExportError(f"{path} holds no {MANIFEST}: not a bundle, or an export that was interrupted")
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path / MANIFEST} cannot be read: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ExportError(
            f"{path / MANIFEST} has schema version {version!r}; this isthmus reads {SCHEMA_VERSION}"
        )
    missing = [key for key in _WANTED if key not in manifest]
    if missing:
        raise ExportError(f"{path / MANIFEST} lacks {', '.join(missing)}")
    absent = [part for part in _PARTS if not (path / part).is_file()]
    if absent:
        raise ExportError(f"{path} is incomplete: no {', '.join(absent)}; export again")
    return Bundle(path=path, manifest=manifest)


def new_id(now: datetime | None = None) -> str:
    """A folder name that sorts by time: YYYYmmdd-HHMMSS-xxxx (UTC)."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def seal(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """Complete a staged bundle: add the digests to the manifest, then write it and its two copies.

    `manifest` holds all but `schema_version`, `saved_model_digest` and `files`. manifest.json comes last.
    """
    absent = [part for part in _PARTS if not (folder / part).is_file()]
    assert not absent, f"sealed too early: no {absent}"
    sealed = {
        **manifest,
        "schema_version": SCHEMA_VERSION,
        "saved_model_digest": tree_digest(folder / "saved_model", exclude=OUTSIDE_DIGEST),
        "files": file_table(folder, exclude=_unlisted()),
    }
    write_manifest_copies(folder / "saved_model", sealed)
    write_json(folder / MANIFEST, sealed)
    return load(folder)


def write_manifest_copies(saved_model: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest, on one line, where the graph and a server's owner find it."""
    for copy in MANIFEST_COPIES:
        path = saved_model / copy
        path.parent.mkdir(exist_ok=True)
        write_text(path, canonical_json(manifest))


def publish(staged: Path, target: Path) -> Bundle:
    """Give a sealed bundle its final name in one rename and point `latest` beside it at it."""
    publish_directory(staged, target)
    point_latest(target.parent / "latest", target)
    return load(target)


def published(bundles: Path) -> Iterator[Bundle]:
    """The complete bundles below a folder, newest first; anything half-written or foreign is passed over."""
    if not bundles.is_dir():
        return
    for path in sorted(bundles.iterdir(), key=lambda entry: entry.name, reverse=True):
        if path.name.startswith(".") or path.is_symlink():
            continue
        try:
            yield load(path)
        except ExportError:
            continue


def find_by_fingerprint(
    bundles: Path, fingerprint: str, *, usable: Callable[[Bundle], bool] = lambda _: True
) -> Bundle | None:
    """The newest intact and usable bundle made from exactly these inputs, if there is one."""
    for bundle in published(bundles):
        same = bundle.manifest["export"].get("fingerprint") == fingerprint
        if same and not bundle.verify() and usable(bundle):
            return bundle
    return None


def _unlisted() -> tuple[str, ...]:
    return (MANIFEST, *(f"saved_model/{path}" for path in OUTSIDE_DIGEST))
