"""A progress bar on a terminal that log lines do not break; nothing where stderr is no terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(*, total: int, initial: int) -> Iterator[Any]:
    """tqdm over the steps of a run; lines that loggers send to the terminal meanwhile go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with tqdm(total=total, initial=initial, unit="step", file=sys.stderr, disable=None) as bar:
        # tqdm gives each logger that it is told of a handler: name only those that have one to replace.
        loggers = [] if bar.disable else [each for each in _loggers() if _has_console(each)]
        with logging_redirect_tqdm(loggers):
            yield bar


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(), logging.getLogger("isthmus")]


def _has_console(logger: logging.Logger) -> bool:
    return any(
        isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
        for handler in logger.handlers
    )
