"""Digests of files and folders, and publishing that is never seen half-done. Standard library only."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

MANIFEST_COPIES = ("assets/manifest.json", "assets.extra/manifest.json")
"""Files of a saved_model/ that hold a copy of the manifest."""

SIGNATURE = "assets.extra/model.sig"
"""The file of a saved_model/ that holds its signature."""

OUTSIDE_DIGEST = (*MANIFEST_COPIES, SIGNATURE)
"""Files that are no part of a SavedModel's own digest: they hold it, or are made when it is known."""


class FileEntry(TypedDict):
    """One row of `file_table`."""

    sha256: str
    bytes: int


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def walk_files(root: str | os.PathLike[str], *, exclude: Collection[str] = ()) -> Iterator[tuple[str, Path]]:
    """(relative POSIX path, path) of every file under `root`, sorted by the relative path.

    Links are followed where they point at a file and refused where they point at a folder (a loop, or files
    that a copy would not have). Raises FileNotFoundError when `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    skipped = set(exclude)
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(root):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise OSError(
                    f"{os.path.join(folder, name)} is a link to a folder; a digest covers real folders only"
                )
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if relative not in skipped:
                found.append((relative, path))
    yield from sorted(found)


def file_table(root: str | os.PathLike[str], *, exclude: Collection[str] = ()) -> dict[str, FileEntry]:
    """{relative POSIX path: {"sha256", "bytes"}} of every file under `root` except `exclude`."""
    return {
        relative: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for relative, path in walk_files(root, exclude=exclude)
    }


def tree_digest(root: str | os.PathLike[str], *, exclude: Collection[str] = ()) -> str:
    """One SHA-256 for a folder: over the sorted lines `relative/path NUL sha256-of-content LF`.

    Names and contents count; times, owners, modes and empty folders do not. `exclude` holds relative POSIX
    paths.
    """
    whole = hashlib.sha256()
    for relative, path in walk_files(root, exclude=exclude):
        whole.update(f"{relative}\0{sha256_file(path)}\n".encode())
    return whole.hexdigest()


def broken_files(
    root: str | os.PathLike[str], table: Mapping[str, FileEntry], *, exclude: Collection[str] = ()
) -> list[str]:
    """What differs between a folder and its `file_table`, one text for each file: changed, missing or extra.

    Files are hashed by as many threads as there are cores (hashing does not hold Python's lock).
    """
    present = dict(walk_files(root, exclude=exclude))
    skipped = set(exclude)
    wanted = {relative: row for relative, row in table.items() if relative not in skipped}
    both = sorted(present.keys() & wanted.keys())
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = dict(
            zip(both, pool.map(sha256_file, [present[relative] for relative in both]), strict=True)
        )
    changed = [relative for relative in both if digests[relative] != wanted[relative]["sha256"]]
    problems = {relative: f"{relative} was changed" for relative in changed}
    problems |= {relative: f"{relative} is missing" for relative in wanted.keys() - present.keys()}
    problems |= {relative: f"{relative} does not belong" for relative in present.keys() - wanted.keys()}
    return [problems[relative] for relative in sorted(problems)]


def canonical_json(value: Any) -> str:
    """One line, keys sorted, no blanks: equal values, equal bytes. ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write beside and rename: a reader sees the old content or the new, never a part."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Indented JSON with sorted keys and a final newline, written beside and renamed.

    Raises ValueError on NaN and infinity: JSON has neither.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in a UTF-8 file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def publish_directory(staging: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move a finished folder to its final name: first everything in it to the disk, then one rename.

    `target` must not exist (FileExistsError) and must be on `staging`'s file system (OSError EXDEV
    otherwise).
    """
    staging, target = Path(staging), Path(target)
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; published folders are never overwritten")
    for folder, _, names in os.walk(staging, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    # rename(2) replaces an *empty* folder without a word: the check above and no one else's business.
    os.rename(staging, target)
    _sync(target.parent)


def point_latest(link: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `link` a relative symlink to `target`; an earlier link is replaced in one step."""
    link, target = Path(link), Path(target)
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is not a link; move it away")
    beside = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    os.symlink(os.path.relpath(target.absolute(), link.parent.absolute()), beside)
    try:
        os.replace(beside, link)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staging_directory(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh hidden folder under `parent`, removed at the end unless it was published (renamed away)."""
    path = Path(parent, f".staging-{secrets.token_hex(6)}")
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
