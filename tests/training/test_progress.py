"""On a terminal, log lines go above the bar at their handler's level; elsewhere there is no bar."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from isthmus.training.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a bar of two steps and two log lines leave on a stream that is both stdout and stderr."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    logger = logging.getLogger("isthmus")
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.INFO)
    monkeypatch.setattr(logger, "handlers", [handler])
    before = logger.level
    # Not the attribute: loggers remember which levels they have let through.
    logger.setLevel(logging.DEBUG)
    try:
        with progress_bar(total=2, initial=0) as bar:
            bar.update()
            logging.getLogger("isthmus.training.fit").info("for the user")
            logging.getLogger("isthmus.training.fit").debug("for the file")
            bar.update()
    finally:
        logger.setLevel(before)
    assert logger.handlers == [handler]
    return stream.getvalue()


def test_a_terminal_shows_a_bar_and_the_lines_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(Terminal(), monkeypatch)
    assert "2/2" in text
    assert text.count("for the user\n") == 1
    assert "for the file" not in text


def test_elsewhere_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(io.StringIO(), monkeypatch) == "for the user\n"
