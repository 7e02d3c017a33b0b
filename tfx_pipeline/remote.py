"""Places that are no local path: object stores, through Beam's file systems.

A place is a local path or a URI such as `gs://bucket/folder` or `s3://bucket/folder`. Credentials and endpoints are
those of the store's own client library (for S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …).

An object store renames nothing: what must appear whole is written with its marker last, and read only where the
marker is.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.lineage.places import is_remote
from isthmus.tfx_pipeline.errors import PipelineError

SCHEMES = ("gs", "s3", "hdfs")
"""What Beam's file systems open here, besides local paths."""

_NUM_TRANSFERS = 8
_CHUNK_BYTES = 8 << 20


@dataclass(kw_only=True, frozen=True)
class Entry:
    """One file of a tree."""

    name: str
    """POSIX path relative to the tree's root."""

    num_bytes: int
    """Its size."""

    updated: float
    """When it was last written, seconds since 1970; 0 where the store does not say."""


def check_scheme(place: str) -> None:
    """Refuse a URI that no file system here opens.

    Raises:
        PipelineError: The scheme is unknown; the text says which are known.
    """
    scheme = place.split("://", maxsplit=1)[0]
    if is_remote(place) and scheme not in SCHEMES:
        hint = (
            "; minio:// is a name of Kubeflow's own: give s3:// and the store's address as AWS_ENDPOINT_URL"
            if scheme == "minio"
            else ""
        )
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise PipelineError(f"{place}: cannot open {scheme}://; known are {known} and paths{hint}")


@functools.cache
def _check_google_credentials() -> None:
    """Beam tries for two minutes, and then goes on without: ask once, before it does."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        google.auth.default()
    except DefaultCredentialsError as error:
        raise PipelineError(
            "no credentials for gs:// here; run `gcloud auth application-default login`, or name a key file in "
            "GOOGLE_APPLICATION_CREDENTIALS"
        ) from error


def join(place: str, *names: str) -> str:
    """A place below another."""
    return "/".join([place.rstrip("/"), *names])


def files(place: str) -> list[Entry]:
    """Every file below a place, by name; empty where nothing is there.

    Raises:
        PipelineError: The store cannot be reached or refuses.
    """
    root = place.rstrip("/") + "/"
    with _explained("list", place):
        (found,) = _systems().match([root + "**"])
    entries = [
        Entry(
            name=found_file.path[len(root) :],
            num_bytes=found_file.size_in_bytes,
            updated=found_file.last_updated_in_seconds or 0.0,
        )
        for found_file in found.metadata_list
    ]
    return sorted(entries, key=lambda entry: entry.name)


def exists(place: str) -> bool:
    """Whether a file is there (a folder of an object store is not a thing).

    Raises:
        PipelineError: The store cannot be reached or refuses.
    """
    with _explained("look at", place):
        return bool(_systems().exists(place))


def read_bytes(place: str) -> bytes:
    """A file's content. Raises PipelineError when it cannot be read."""
    with _explained("read", place), _open(place) as file:
        content: bytes = file.read()
        return content


def write_bytes(place: str, content: bytes) -> None:
    """Write a file. Raises PipelineError when the store refuses."""
    with _explained("write", place), _create(place, empty=not content) as file:
        file.write(content)


def delete(places: Collection[str]) -> None:
    """Remove files. Raises PipelineError when the store refuses."""
    if places:
        with _explained("delete", next(iter(places))):
            _systems().delete(list(places))


def fetch_tree(place: str, target: Path, *, may_be_empty: bool = False) -> None:
    """Copy every file below a place into a folder of this machine, which is made.

    With `may_be_empty`, nothing there is a folder without files: an object store knows no other.

    Raises:
        PipelineError: Nothing is there, or the store refuses.
    """
    entries = files(place)
    if not entries and not may_be_empty:
        raise PipelineError(f"nothing at {place}")

    def fetch(entry: Entry) -> None:
        path = target / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        there = join(place, entry.name)
        with _explained("read", there), _open(there) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)

    target.mkdir(parents=True, exist_ok=True)
    _each(fetch, entries)


def send_tree(folder: Path, place: str, *, marker: str | None = None) -> int:
    """Copy a folder of this machine to a place; the file named `marker` goes last. Returns the number sent.

    What lies there with the same name and size is not sent again: an upload that was interrupted goes on.

    Raises:
        PipelineError: The store cannot be reached or refuses.
    """
    there = {entry.name: entry.num_bytes for entry in files(place)}
    missing = [name for name in _names(folder) if there.get(name) != (folder / name).stat().st_size]
    send = functools.partial(_send, folder, place)
    _each(send, [name for name in missing if name != marker])
    if marker in missing:
        send(marker)
    return len(missing)


def replace_tree(folder: Path, place: str) -> None:
    """Make a place hold a folder's files and no others.

    Every file is sent, also over one of the same size: unlike an upload that goes on, what lies there may come from
    another attempt at the same work, and have another content.

    Raises:
        PipelineError: The store cannot be reached or refuses.
    """
    names = _names(folder)
    kept = frozenset(names)
    delete([join(place, entry.name) for entry in files(place) if entry.name not in kept])
    _each(functools.partial(_send, folder, place), names)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _send(folder: Path, place: str, name: str) -> None:
    there, path = join(place, name), folder / name
    empty = not path.stat().st_size
    with _explained("write", there), path.open("rb") as source, _create(there, empty=empty) as sink:
        shutil.copyfileobj(source, sink, _CHUNK_BYTES)


@contextlib.contextmanager
def local_tree(place: str) -> Iterator[Path]:
    """A folder of this machine with the content of a place: itself where it is one, else a copy for the while.

    Raises:
        PipelineError: Nothing is there, or the store refuses.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-fetched-") as scratch:
        target = Path(scratch, place.rstrip("/").rsplit("/", maxsplit=1)[-1])
        fetch_tree(place, target)
        yield target


def _each(work: Callable[[Any], None], items: list[Any]) -> None:
    with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
        for _ in pool.map(work, items):
            pass


def _systems() -> Any:
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    if (
        FileSystems._pipeline_options is None
    ):  # Beam sets them when it runs a pipeline, and wants them always.
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


def _raw() -> Any:
    """No guess from the file's name: a `.gz` stays as it is."""
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED


def _open(place: str) -> Any:
    return _systems().open(place, "application/octet-stream", _raw())


@contextlib.contextmanager
def _create(place: str, *, empty: bool) -> Iterator[Any]:
    """A file to write. Beam 2.77 ends an upload to S3 of no bytes with no part, which S3 refuses (MalformedXML)."""
    if empty and place.startswith("s3://"):
        import boto3

        bucket, key = place.removeprefix("s3://").split("/", maxsplit=1)
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"")
        yield io.BytesIO()
        return
    with _systems().create(place, "application/octet-stream", _raw()) as file:
        yield file


@contextlib.contextmanager
def _explained(verb: str, place: str) -> Iterator[None]:
    """Turn whatever a store's client raises into one line; each has exceptions of its own."""
    if is_remote(place):
        check_scheme(place)
    if place.startswith("gs://"):
        _check_google_credentials()
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        details = " ".join(str(error).split())
        raise PipelineError(f"cannot {verb} {place}: {type(error).__name__}: {details[:600]}") from error
