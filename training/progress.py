"""A progress bar on a terminal that log lines do not break; nothing where stderr is no terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(*, total: int, initial: int, hidden: bool = False) -> Iterator[Any]:
    """tqdm over the steps of a run; lines that loggers send to the terminal meanwhile go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with tqdm(total=total, initial=initial, unit="step", file=sys.stderr, disable=hidden or None) as bar:
        # tqdm gives each logger that it is told of a handler: name only those that have one to replace.
        levels = [] if bar.disable else [(each, _console_level(each)) for each in _loggers()]
        replaced = [(each, level) for each, level in levels if level is not None]
        with logging_redirect_tqdm([each for each, _ in replaced]):
            for logger, level in replaced:
                # tqdm's handler comes last, and without the level of the one that it stands for.
                logger.handlers[-1].setLevel(level)
            yield bar


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(), logging.getLogger("isthmus")]


def _console_level(logger: logging.Logger) -> int | None:
    """Level of the logger's handler on stdout or stderr; None when it has none."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
            return handler.level
    return None
