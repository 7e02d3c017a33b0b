"""Serving folders: which complete versions lie in one, and how a new one gets there without being seen half.

A version is complete from the moment that its `saved_model.pb` is there; servers and everything here look for that
file. On a file system the whole folder appears by one rename. An object store has neither folders nor a rename:
there `saved_model.pb` is uploaded last, when every other file is in its place, so that a server which polls sees a
folder that is no version yet, and then the version. What an interrupted push has left is removed by the next.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from isthmus.export.bundle import MANIFEST_COPIES
from isthmus.lineage.files import OUTSIDE_DIGEST, publish_directory, tree_digest
from isthmus.tfx_pipeline import remote

READY = "saved_model.pb"
"""The file that makes a folder a version."""

_STAGING = ".pushing-"


def versions(base: str) -> list[int]:
    """The numbers of the complete versions below a serving folder, here or in an object store."""
    if remote.is_remote(base):
        return [number for number, names in _remote_folders(base).items() if READY in names]
    folder = Path(base)
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal() and (p / READY).is_file()]


def pushed_version(base: str, saved_model_digest: str) -> int | None:
    """The newest complete version below a serving folder that has this content, if there is one.

    On a file system every file is hashed. In an object store the manifest's copy says what it is, and every file
    that the manifest lists must be there with its size; the store's own checksums guard the bytes.
    """
    for version in sorted(versions(base), reverse=True):
        if remote.is_remote(base):
            same = _is_remote_copy(remote.join(base, str(version)), saved_model_digest)
        else:
            same = tree_digest(Path(base, str(version)), exclude=OUTSIDE_DIGEST) == saved_model_digest
        if same:
            return version
    return None


def push(saved_model: Path, base: str) -> int:
    """Publish a copy as the next version, and return its number: seconds since 1970, or the newest plus one.

    A server sees the whole version or none (see above). One pipeline at a time pushes to a serving folder.

    Raises:
        PipelineError: The store refuses.
    """
    if remote.is_remote(base):
        return _push_remote(saved_model, base)
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    version = _next([int(path.name) for path in folder.iterdir() if path.name.isdecimal()])
    staging = folder / f"{_STAGING}{version}"
    shutil.copytree(saved_model, staging)
    publish_directory(staging, folder / str(version))
    return version


def _push_remote(saved_model: Path, base: str) -> int:
    folders = _remote_folders(base)
    for number, names in folders.items():
        if READY not in names:
            place = remote.join(base, str(number))
            remote.delete([remote.join(place, name) for name in sorted(names)])
    version = _next(list(folders))
    remote.send_tree(saved_model, remote.join(base, str(version)), marker=READY)
    return version


def _next(taken: list[int]) -> int:
    return max([int(time.time()), *(number + 1 for number in taken)])


def _remote_folders(base: str) -> dict[int, dict[str, int]]:
    """{number of a folder, complete or not: {path in it: bytes}}."""
    folders: dict[int, dict[str, int]] = {}
    for entry in remote.files(base):
        number, _, name = entry.name.partition("/")
        if name and number.isdecimal():
            folders.setdefault(int(number), {})[name] = entry.num_bytes
    return folders


def _is_remote_copy(place: str, saved_model_digest: str) -> bool:
    there = {entry.name: entry.num_bytes for entry in remote.files(place)}
    copy = MANIFEST_COPIES[-1]
    if copy not in there:
        return False
    manifest: dict[str, Any] = json.loads(remote.read_bytes(remote.join(place, copy)))
    inside = "saved_model/"
    wanted = {
        path.removeprefix(inside): row["bytes"]
        for path, row in manifest["files"].items()
        if path.startswith(inside)
    }
    return manifest["saved_model_digest"] == saved_model_digest and all(
        there.get(name) == size for name, size in wanted.items() if name not in OUTSIDE_DIGEST
    )
