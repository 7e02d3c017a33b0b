"""What lies in a folder: on this machine, or in an object store through Beam's file systems."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from isthmus.lineage.places import is_remote
from isthmus.tfx_pipeline.errors import PipelineError


@dataclass(frozen=True)
class Listed:
    """One file."""

    path: str
    """Whole path, with the scheme."""

    size_bytes: int
    modified: float
    """Seconds since 1970; of an object, when it was last written."""


def files_below(root: str) -> Iterator[Listed]:
    """Every file below a folder at any depth. On this machine in sorted order and without holding the list in memory;
    hidden files are left out there and elsewhere.

    Raises:
        PipelineError: The store cannot be reached, or refuses.
    """
    if is_remote(root):
        listed = _matched(root.rstrip("/") + "/**")
        yield from (each for each in listed if not os.path.basename(each.path).startswith("."))
        return
    for entry in _entries_below(root):
        state = entry.stat()
        yield Listed(entry.path, state.st_size, state.st_mtime)


def paths_below(root: str) -> Iterator[str]:
    """The paths of `files_below`; a local file is not asked for its size, which would be half of the work.

    Raises:
        PipelineError: As `files_below`.
    """
    if is_remote(root):
        return (each.path for each in files_below(root))
    return (entry.path for entry in _entries_below(root))


def _entries_below(root: str) -> Iterator[os.DirEntry[str]]:
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(entry.path)
            elif entry.is_file():
                yield entry
        folders.extend(reversed(below))


def files_matching(path: str) -> list[Listed]:
    """The files of a pattern with `*` and `?`, a file itself, or all files below a folder; sorted by path.

    Raises:
        PipelineError: As `files_below`.
    """
    found = _matched(path)
    if not found and (os.path.isdir(path) or (is_remote(path) and not re.search(r"[*?]", path))):
        found = list(files_below(path))
    return sorted(found, key=lambda each: each.path)


def names_below(folder: str) -> set[str]:
    """The names directly below a folder; none where there is no such folder."""
    if not is_remote(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()
    prefix = folder.rstrip("/") + "/"
    return {each.path[len(prefix) :].split("/", 1)[0] for each in _matched(prefix + "**")}


def fingerprint(files: Iterable[Listed], *, root: str) -> str:
    """sha256 over name, size and modification time of every file: changes when one may have changed."""
    digest = hashlib.sha256()
    for line in sorted(
        f"{each.path.removeprefix(root)}\0{each.size_bytes}\0{each.modified!r}\n" for each in files
    ):
        digest.update(line.encode())
    return digest.hexdigest()


def read_bytes(path: str) -> bytes:
    """The whole content of a file."""
    if not is_remote(path):
        with open(path, "rb", buffering=0) as file:
            return file.read()
    with open_remote(path) as remote:
        return bytes(remote.read())


def open_remote(path: str) -> Any:
    """A readable, seekable file of Beam's; nothing is decompressed."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def connect(beam_args: Iterable[str]) -> None:
    """Tell Beam's file systems about endpoints and credentials that stand among Beam's options."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(beam_args)))


def _matched(pattern: str) -> list[Listed]:
    if not is_remote(pattern):
        folder, name = os.path.split(pattern)
        names = fnmatch.filter(os.listdir(folder), name) if os.path.isdir(folder) else []
        # A name such as a[1].csv is no pattern that matches itself.
        candidates = [pattern] if os.path.isfile(pattern) else [os.path.join(folder, name) for name in names]
        paths = [path for path in candidates if os.path.isfile(path)]
        states = [(path, os.stat(path)) for path in paths]
        return [Listed(path, state.st_size, state.st_mtime) for path, state in states]
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        (result,) = FileSystems.match([pattern])
    except (BeamIOError, ValueError, OSError) as error:
        raise PipelineError(f"cannot list {pattern}: {' '.join(str(error).split())[:500]}") from error
    return [
        Listed(found.path, found.size_in_bytes, found.last_updated_in_seconds)
        for found in result.metadata_list
    ]
