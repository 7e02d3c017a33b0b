"""Which code made this: git state, library versions, a digest of the code itself. Standard library only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from isthmus.lineage.files import sha256_file, sha256_text

_GIT_SECONDS = 10


class GitState(TypedDict):
    """What `git_state` answers; all None outside a repository."""

    commit: str | None
    dirty: bool | None
    remote: str | None


def git_state(folder: str | os.PathLike[str] = ".") -> GitState:
    """Commit, whether tracked files differ from it, and where `origin` is, of the repository around `folder`.

    Credentials in the remote's URL are left out. Without git, outside a repository or before the first commit
    the values that cannot be known are None; nothing is raised.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "remote": None}
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    remote = _git(folder, "config", "--get", "remote.origin.url")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "remote": re.sub(r"(?<=://)[^/@]*@", "", remote) if remote else None,
    }


def git_diff(folder: str | os.PathLike[str] = ".") -> str | None:
    """What tracked files differ by from the commit that `git_state` names; None when they do not, or without git."""
    return _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or None


def has_commit(commit: str, folder: str | os.PathLike[str] = ".") -> bool:
    """Whether the repository around `folder` has this commit."""
    return _git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _git(folder: str | os.PathLike[str], *arguments: str) -> str | None:
    environment = os.environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """{distribution: version} of those of `names` that are installed, without importing any of them."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))


def code_digest(package: str) -> str:
    """A digest over the .py files of a package and its sub-packages (`isthmus.training`), by relative path.

    The package is looked up, not run. Raises ModuleNotFoundError when it is not there. Its parents, if any,
    are imported by Python's own lookup.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"no package {package!r} to take a digest of", name=package)
    if not spec.submodule_search_locations:
        if spec.origin is None:
            raise ModuleNotFoundError(f"{package!r} has no source files", name=package)
        return sha256_text(f"{Path(spec.origin).name}\0{sha256_file(spec.origin)}\n")
    folders = [Path(location) for location in spec.submodule_search_locations]
    lines = [
        f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n"
        for folder in folders
        for path in folder.rglob("*.py")
    ]
    return sha256_text("".join(sorted(lines)))
