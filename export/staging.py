"""The hidden folder an export works in, and the removal of those that a killed export left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PREFIX = ".staging-"
_LOCK = "lock"


@dataclass(kw_only=True, frozen=True)
class Staging:
    """A folder next to the bundles, on their file system, locked for as long as somebody works in it."""

    path: Path
    """The folder."""

    lock: int
    """File descriptor that holds the lock; child processes inherit it, so it outlives a killed parent."""


@contextlib.contextmanager
def staging(bundles: Path) -> Iterator[Staging]:
    """A fresh staging folder, removed at the end whatever happens; abandoned ones go before and after."""
    bundles.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(bundles):
        remove_abandoned(bundles)
        path = bundles / f"{_PREFIX}{secrets.token_hex(6)}"
        path.mkdir()
        lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield Staging(path=path, lock=lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        # Processes of a killed run may have held theirs a moment longer.
        with _one_at_a_time(bundles):
            remove_abandoned(bundles)


def remove_abandoned(bundles: Path) -> list[Path]:
    """Remove the staging folders that no process works in any more; returns them."""
    removed = []
    for path in sorted(bundles.glob(f"{_PREFIX}*")):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextlib.contextmanager
def _one_at_a_time(bundles: Path) -> Iterator[None]:
    """Between making a folder and locking it, nobody else may look for abandoned ones."""
    with open(bundles / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
