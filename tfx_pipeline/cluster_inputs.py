"""What a run on a cluster starts from: every local path becomes a place that its containers can open.

A URI is taken as it is, and so is a path below a volume that the recipe mounts into the tasks. Any other local path
is uploaded below the root, under a name that is its content's: what is there already is not sent again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from isthmus.lineage.files import sha256_file
from isthmus.tfx_pipeline import image_folder, remote
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import SPLITS

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


@dataclass(kw_only=True, frozen=True)
class ClusterData:
    """The images where the containers find them."""

    place: str
    """Their root: a URI, or a path on a mounted volume."""

    fingerprint: str
    """Changes when an image may have changed."""

    record: dict[str, Any]
    """What they are called in the record of the run (see `image_folder.dataset_record`)."""


def bundle_for_cluster(bundle: str | Path, *, root: str, volumes: Iterable[str] = ()) -> ClusterBundle:
    """Look at a bundle and make sure that the containers can open it.

    Raises:
        ExportError: There is no usable bundle.
        PipelineError: It is damaged, or cannot be read or uploaded.
    """
    from isthmus.export import bundle as bundles

    if remote.is_remote(bundle):
        content = remote.read_bytes(remote.join(str(bundle), _MANIFEST))
        return ClusterBundle(
            place=str(bundle),
            manifest=json.loads(content),
            manifest_sha256=hashlib.sha256(content).hexdigest(),
        )
    opened = bundles.load(Path(bundle))
    if broken := opened.verify():
        raise PipelineError(f"the bundle {opened.path} is damaged: {'; '.join(broken[:5])}; export it again")
    digest = sha256_file(opened.path / _MANIFEST)
    place = str(opened.path)
    if not _is_mounted(opened.path, volumes):
        place = remote.join(root, "bundles", opened.manifest["name"], digest[:16])
        _upload("bundle", opened.path, place, option="--bundle", marker=_MANIFEST)
    return ClusterBundle(place=place, manifest=opened.manifest, manifest_sha256=digest)


def data_for_cluster(
    data: str | Path, *, labels: list[str], root: str, volumes: Iterable[str] = ()
) -> ClusterData:
    """Look at the names of an image folder's files and make sure that the containers can open it.

    Raises:
        PipelineError: A split or its images are missing, a class is unknown to the model, or the images cannot be
            listed or uploaded.
    """
    if remote.is_remote(data):
        return _listed(str(data).rstrip("/"), labels)
    folder = image_folder.inspect(Path(data).absolute(), labels=labels)
    place = str(folder.root)
    if not _is_mounted(folder.root, volumes):
        place = remote.join(root, "data", folder.root.name, folder.fingerprint[:16])
        _upload("images", folder.root, place, option="--data")
    return ClusterData(
        place=place, fingerprint=folder.fingerprint, record=image_folder.dataset_record(folder)
    )


def file_for_cluster(path: Path | None, *, root: str, folder: str) -> str | None:
    """A single file, such as a curated schema, below the root under its content's name.

    Raises:
        PipelineError: It cannot be read or uploaded.
    """
    if path is None:
        return None
    if not path.is_file():
        raise PipelineError(f"no file at {path}")
    place = remote.join(root, folder, sha256_file(path)[:16], path.name)
    if not remote.exists(place):
        remote.write_bytes(place, path.read_bytes())
    return place


def _is_mounted(path: Path, volumes: Iterable[str]) -> bool:
    return any(path.is_relative_to(volume) for volume in volumes)


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
        logger.info("%s are at %s already", what, place)


def _listed(place: str, labels: list[str]) -> ClusterData:
    """What `image_folder.inspect` does on a disk, from a store's listing."""
    digest = hashlib.sha256()
    num_images = dict.fromkeys(SPLITS, 0)
    has_record = False
    for entry in remote.files(place):
        has_record = has_record or entry.name == "dataset.json"
        split, _, below = entry.name.partition("/")
        if split not in num_images or not image_folder.is_image(entry.name):
            continue
        if "/" not in below:
            raise PipelineError(f"{place}/{entry.name} is outside a class folder")
        if (text := PurePosixPath(below).parent.name) not in labels:
            raise PipelineError(
                f"class folder {place}/{split}/{text} is not among the model's {len(labels)} labels "
                f"({', '.join(labels[:10])}{', …' if len(labels) > 10 else ''})"
            )
        digest.update(f"{entry.name}\0{entry.num_bytes}\0{entry.updated}\n".encode())
        num_images[split] += 1
    if empty := [split for split, count in num_images.items() if not count]:
        raise PipelineError(f"{place} holds no images in {', '.join(empty)}; it needs {', '.join(SPLITS)}")
    record = {"name": place.rsplit("/", maxsplit=1)[-1], "source": place, "digest": digest.hexdigest()}
    if has_record:
        described = json.loads(remote.read_bytes(remote.join(place, "dataset.json")))
        record = {key: described[key] for key in ("name", "source", "digest")}
    return ClusterData(place=place, fingerprint=digest.hexdigest(), record={**record, "splits": num_images})
