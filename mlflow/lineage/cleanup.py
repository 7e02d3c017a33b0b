"""`isthmus registry gc`: which versions nobody needs any more, and what their removal frees.

Kept: every version that has an alias, and the last N champions (`RegistryConfig.keep_champions`), so that a
rollback always finds what it goes back to. A folder that a kept version shares (one checkpoint, two exports)
is kept too. The history keeps its entries.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from isthmus.lineage import history
from isthmus.lineage.config import RegistryConfig
from isthmus.lineage.versions import Version, list_versions, settle_aliases, store_client

_MODEL_IDS = ("saved_model_id", "onnx_model_id", "torch_model_id")
_FOLDERS = ("pushed_path", "bundle", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One version that can go, with everything that only it needs."""

    version: Version
    folders: tuple[Path, ...]
    """Pushed folder, bundle and checkpoint, where they are under the home folder and nothing kept uses
    them."""
    model_ids: tuple[str, ...]
    """Its LoggedModels, SavedModel, ONNX and torch, where nothing kept uses them."""
    num_bytes: int
    """What the folders and the LoggedModels' local files occupy."""

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "name": self.version.name,
            "version": self.version.version,
            "folders": [str(folder) for folder in self.folders],
            "model_ids": list(self.model_ids),
            "bytes": self.num_bytes,
        }


def plan(name: str, *, home: Path, config: RegistryConfig | None = None) -> list[Removal]:
    """What can go, oldest version first; deletes nothing. Raises LineageError for an unknown name."""
    settle_aliases(store_client(), name)
    versions = list_versions(name)
    kept = _kept(name, config or RegistryConfig())
    keep = [version for version in versions if version.aliases or version.version in kept]
    needed_folders = {folder for version in keep for folder in _folders(version, home)} | _latest(home)
    needed_models = {model_id for version in keep for model_id in _model_ids(version)}
    removals = []
    for version in sorted(versions, key=lambda version: version.version):
        if version in keep:
            continue
        folders = tuple(folder for folder in _folders(version, home) if folder not in needed_folders)
        model_ids = tuple(model_id for model_id in _model_ids(version) if model_id not in needed_models)
        stored = [folder for model_id in model_ids if (folder := _stored_folder(model_id, home))]
        removals.append(
            Removal(
                version=version,
                folders=folders,
                model_ids=model_ids,
                num_bytes=_num_bytes([*folders, *stored]),
            )
        )
    return removals


def carry_out(removals: Iterable[Removal], *, home: Path) -> None:
    """Delete what `plan` listed: the version first, so that an interruption leaves files without a name
    only."""
    client = store_client()
    for removal in removals:
        stored = [folder for model_id in removal.model_ids if (folder := _stored_folder(model_id, home))]
        client.delete_model_version(removal.version.name, str(removal.version.version))
        for model_id in removal.model_ids:
            client.delete_logged_model(model_id)
        for folder in (*removal.folders, *stored):
            shutil.rmtree(folder, ignore_errors=True)


def _kept(name: str, config: RegistryConfig) -> set[int]:
    moves = history.champion_moves(history.read(store_client(), name))
    newest_first = dict.fromkeys(move.to_version for move in reversed(moves))
    return set(list(newest_first)[: config.keep_champions])


def _folders(version: Version, home: Path) -> list[Path]:
    """Only folders under the home folder: whatever lies elsewhere is somebody else's."""
    paths = [Path(text).resolve() for key in _FOLDERS if (text := version.tag(key))]
    return [path for path in paths if path.is_dir() and path.is_relative_to(home.resolve())]


def _latest(home: Path) -> set[Path]:
    return {link.resolve() for part in ("bundles", "checkpoints") for link in (home / part).glob("*/latest")}


def _model_ids(version: Version) -> list[str]:
    return [model_id for key in _MODEL_IDS if (model_id := version.tag(key))]


def _stored_folder(model_id: str, home: Path) -> Path | None:
    from mlflow.exceptions import MlflowException

    try:
        location = urlparse(str(store_client().get_logged_model(model_id).artifact_location))
    except MlflowException:
        return None
    folder = Path(unquote(location.path)).parent
    local = location.scheme in ("", "file") and folder.name == model_id
    return folder if local and folder.resolve().is_relative_to(home.resolve()) and folder.is_dir() else None


def _num_bytes(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
