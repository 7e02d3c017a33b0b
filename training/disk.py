"""The disk as a source of trouble: no space, and two runs that write the same thing."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isthmus.training.errors import TrainingError

FULL_MESSAGES = ("No space left on device", "disk is full")
"""How safetensors (Rust) and SQLite say it, without an errno."""


@contextmanager
def no_space_is_one_line(folder: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into one line that names the folder and what is free."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as problem:
        by_number = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
        if not by_number and not any(text in str(problem) for text in FULL_MESSAGES):
            raise
        raise TrainingError(
            f"no space left under {folder} ({_free(folder)} free); free some, or give another --home "
            f"(nothing half-written is kept)"
        ) from problem


@contextmanager
def replace_lock(parent: Path, name: str) -> Iterator[None]:
    """Only one process at a time may replace `parent/name`; the kernel drops the lock when its process dies.

    Raises TrainingError when another process holds it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise TrainingError(
                f"another process is writing {parent / name} now; wait for it, or give another --home"
            ) from problem
        yield


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
