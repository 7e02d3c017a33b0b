"""What a run on a cluster starts from: every local path becomes a place that its containers can open.

A URI is taken as it is, and so is a path below a volume that the recipe mounts into the tasks. Any other local path
is uploaded below the root, under a name that is its content's: what is there already is not sent again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.lineage.files import sha256_file, tree_digest
from isthmus.tfx_pipeline import remote, sources
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.heads import check_head
from isthmus.tfx_pipeline.sources import Source

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


@dataclass(kw_only=True, frozen=True)
class ClusterBundle:
    """A bundle where the containers find it."""

    place: str
    """Its URI, or its path on a mounted volume."""

    manifest: dict[str, Any]
    """manifest.json."""

    manifest_sha256: str
    """Digest of that file."""


def bundle_for_cluster(bundle: str | Path, *, root: str, volumes: Iterable[str] = ()) -> ClusterBundle:
    """Look at a bundle and make sure that the containers can open it.

    Raises:
        ExportError: There is no usable bundle.
        PipelineError: It is damaged, a multi-label one, or cannot be read or uploaded.
    """
    from isthmus.export import bundle as bundles

    if remote.is_remote(bundle):
        content = remote.read_bytes(remote.join(str(bundle), _MANIFEST))
        manifest = json.loads(content)
        check_head(manifest, bundle=str(bundle))
        return ClusterBundle(
            place=str(bundle), manifest=manifest, manifest_sha256=hashlib.sha256(content).hexdigest()
        )
    opened = bundles.load(Path(bundle))
    check_head(opened.manifest, bundle=str(opened.path))
    if broken := opened.verify():
        raise PipelineError(f"the bundle {opened.path} is damaged: {'; '.join(broken[:5])}; export it again")
    digest = sha256_file(opened.path / _MANIFEST)
    place = str(opened.path)
    if not is_mounted(opened.path, volumes):
        place = remote.join(root, "bundles", opened.manifest["name"], digest[:16])
        _upload("bundle", opened.path, place, option="--bundle", marker=_MANIFEST)
    return ClusterBundle(place=place, manifest=opened.manifest, manifest_sha256=digest)


def source_for_cluster(
    config: InputConfig,
    *,
    data_root: Path | None,
    labels: list[str],
    root: str,
    volumes: Iterable[str] = (),
    beam_args: Iterable[str] = (),
    recurring: bool = False,
) -> tuple[Source, dict[str, Any]]:
    """Look at the images as the local runner does, and make sure that the containers can open them.

    Args:
        config: The recipe's `pipeline.input`.
        data_root: The folder that training prepared, for when `config.path` is None.
        labels: The model's labels.
        root: Where a local folder is uploaded to.
        volumes: Paths that the containers have, too.
        beam_args: Beam's options, for the endpoints of object stores.
        recurring: Whether a schedule will start the run again and again: then each finds the latest span and version
            for itself, where the recipe asks for none. What was uploaded stays what it is.

    Returns:
        The source as the containers see it, and what the data set is called in the record of the run.

    Raises:
        PipelineError: The images cannot be used, or cannot be uploaded.
    """
    source = sources.look(config, data_root=data_root, labels=labels, beam_args=beam_args)
    if remote.is_remote(source.path) or is_mounted(source.path, volumes):
        record = source.record()
        if recurring:
            source = dataclasses.replace(source, span=config.span, version=config.version)
        return source, record
    if source.kind != "folder":
        raise PipelineError(
            f"{source.path} is on this machine, where the cluster cannot read it: upload it with the images that it "
            "names, and give its URI as pipeline.input.path"
        )
    place = remote.join(root, "data", Path(source.path).name, source.fingerprint[:16])
    _upload("images", Path(source.path), place, option="--data")
    return dataclasses.replace(source, pattern=place, path=place), source.record()


def folder_for_cluster(place: str | None, *, root: str, folder: str, key: str) -> str:
    """A folder of this machine, such as earlier statistics, below the root; a URI stays. "" for None.

    Args:
        place: The folder, or its URI.
        root: Where to.
        folder: Below the root.
        key: The recipe's key that names it, for the error.

    Raises:
        PipelineError: It is not there, or cannot be uploaded.
    """
    if place is None or remote.is_remote(place):
        return place or ""
    if not Path(place).is_dir():
        raise PipelineError(f"no folder at {place} ({key})")
    target = remote.join(root, folder, tree_digest(Path(place))[:16])
    _upload(folder, Path(place), target, option=key)
    return target


def file_for_cluster(path: Path | None, *, root: str, folder: str) -> str | None:
    """A single file, such as a curated schema, below the root under its content's name.

    Raises:
        PipelineError: It cannot be read or uploaded.
    """
    if path is None:
        return None
    if not path.is_file():
        raise PipelineError(f"no file at {path}")
    return content_for_cluster(path.read_bytes(), root=root, folder=folder, name=path.name)


def content_for_cluster(content: bytes, *, root: str, folder: str, name: str) -> str:
    """A file with this content below the root, under its content's name.

    Raises:
        PipelineError: It cannot be uploaded.
    """
    place = remote.join(root, folder, hashlib.sha256(content).hexdigest()[:16], name)
    if not remote.exists(place):
        remote.write_bytes(place, content)
    return place


def is_mounted(path: str | Path, volumes: Iterable[str]) -> bool:
    """Whether a path is on a volume that the containers have, too."""
    return any(Path(os.path.normpath(path)).is_relative_to(volume) for volume in volumes)


def _upload(what: str, folder: Path, place: str, *, option: str, marker: str | None = None) -> None:
    try:
        num_sent = remote.send_tree(folder, place, marker=marker)
    except PipelineError as error:
        raise PipelineError(
            f"the {what} at {folder} must be where the cluster can read them, and uploading them failed: {error}; "
            f"or copy {folder} to {place} yourself and give that as {option}"
        ) from error
    if num_sent:
        logger.info("uploaded %d files of the %s to %s", num_sent, what, place)
    else:
        logger.info("already at %s: the %s", place, what)
