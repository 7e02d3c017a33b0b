"""Where a version is pushed: a folder of this machine, or a place in an object store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from isthmus.lineage.errors import LineageError


def is_remote(place: str | Path) -> bool:
    """Whether a place is a URI such as `s3://bucket/folder` rather than a path of this machine."""
    return "://" in str(place)


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """The folder itself, or for the while a copy of what lies in the object store (through MLflow's clients).

    Raises:
        LineageError: The store cannot be read.
    """
    if not is_remote(place):
        yield Path(place)
        return
    import mlflow

    with tempfile.TemporaryDirectory(prefix="isthmus-pushed-") as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=scratch)
        # Every store's client has exceptions of its own.
        except Exception as error:
            raise LineageError(f"cannot read {place}: {' '.join(str(error).split())[:500]}") from error
        yield Path(folder)
