"""What a person sees, and the log file that holds the rest.

A command shows about twenty lines a stage; TensorFlow, TFX and Beam write thousands, some of them from C++
straight to the file descriptors. `routed` sends the lines of the loggers below `isthmus` to the terminal, and
all else to a file whose path the command prints.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def routed(
    command: str, home: Path, *, capture: bool = False, result_on_stdout: bool = False, quiet: bool = False
) -> Iterator[Path]:
    """Routes log records for the duration of one command.

    Args:
      command: Names the log file, `<home>/logs/<command>-<time>.log`.
      home: The folder of the store.
      capture: Also sends whatever is written to the file descriptors 1 and 2 to the log file.
      result_on_stdout: Standard output is for the command's result alone, so the lines go to standard error.
      quiet: Only warnings reach the terminal: one of several processes of a run speaks for all.

    Yields:
      The path of the log file.
    """
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))
        terminal = sys.stderr if result_on_stdout else sys.stdout
        if capture:
            terminal = stack.enter_context(_captured(log, 2 if result_on_stdout else 1))
        stack.enter_context(_handlers(terminal, log, logging.WARNING if quiet else logging.INFO))
        yield path


@contextlib.contextmanager
def _captured(log: TextIO, descriptor: int) -> Iterator[TextIO]:
    """Points fd 1 and 2 at the log file; yields a stream that still reaches what `descriptor` was."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    terminal = os.fdopen(os.dup(kept[descriptor - 1]), "w", buffering=1, encoding="utf-8")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        terminal.close()
        for target, source in zip((1, 2), kept, strict=True):
            os.dup2(source, target)
            os.close(source)


@contextlib.contextmanager
def _handlers(terminal: TextIO, log: TextIO, level: int) -> Iterator[None]:
    ours, root = logging.getLogger("isthmus"), logging.getLogger()
    to_terminal = logging.StreamHandler(terminal)
    to_terminal.setLevel(level)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    to_file = logging.StreamHandler(log)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = ours.level, root.level
    ours.setLevel(logging.DEBUG)
    root.setLevel(logging.INFO)
    ours.addHandler(to_terminal)
    root.addHandler(to_file)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.removeHandler(to_terminal)
        root.removeHandler(to_file)
        ours.setLevel(before[0])
        root.setLevel(before[1])
