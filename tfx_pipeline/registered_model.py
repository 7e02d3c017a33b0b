"""Finding the SavedModel of a registered version: wherever an intact copy still is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.lineage.files import OUTSIDE_DIGEST, tree_digest
from isthmus.tfx_pipeline import remote
from isthmus.tfx_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from isthmus.lineage.registry import Version


def find_saved_model(version: Version, scratch: Path) -> Path:
    """The version's SavedModel: pushed (here or in an object store), in its bundle, or in MLflow.

    Args:
        version: The registered version.
        scratch: An empty folder that a download may use.

    Raises:
        PipelineError: No intact copy is left.
    """
    looked = []
    for named, place in _places(version, scratch):
        looked.append(named)
        if place.is_dir() and tree_digest(place, exclude=OUTSIDE_DIGEST) == version.saved_model_digest:
            return place
    raise PipelineError(
        f"no intact copy of the SavedModel of {version.name} version {version.version} is left "
        f"(looked at {', '.join(looked) or 'nothing: the registry names no place'}); "
        "restore one, or promote another version"
    )


def _places(version: Version, scratch: Path) -> Iterator[tuple[str, Path]]:
    """(what it is called, the folder) of every copy that the registry knows of."""
    bundle = version.bundle_place
    for number, place in enumerate([version.pushed_place, f"{bundle}/saved_model" if bundle else None]):
        if place is None:
            continue
        if not remote.is_remote(place):
            yield place, Path(place)
            continue
        target = scratch / f"fetched-{number}"
        try:
            remote.fetch_tree(place, target)
        except PipelineError as error:
            yield f"{place} ({error})", target
        else:
            yield place, target
    if version.model_id is not None:
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            downloaded = mlflow.artifacts.download_artifacts(
                f"models:/{version.model_id}", dst_path=str(scratch)
            )
        except (MlflowException, OSError):
            return
        yield str(Path(downloaded) / "saved_model"), Path(downloaded) / "saved_model"
