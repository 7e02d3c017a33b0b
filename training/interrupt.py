"""SIGTERM (a preempted machine) and Ctrl-C end a run at the next step, in one line, with nothing lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from isthmus.training.errors import TrainingInterruptedError

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


@dataclass(kw_only=True)
class StopRequest:
    """Filled by a signal, looked at between steps."""

    received: signal.Signals | None = None

    @staticmethod
    def raise_for(received: signal.Signals, position: str) -> None:
        """Raises TrainingInterruptedError, whose exit code says which signal it was.

        `position` is where the run will continue.
        """
        raise TrainingInterruptedError(
            f"stopped by {received.name} {position}; the same command continues from there",
            exit_code=EXIT_CODES[received],
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs; a second Ctrl-C is Python's own KeyboardInterrupt.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in EXIT_CODES}

    def handle(number: int, _frame: FrameType | None) -> None:
        request.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in EXIT_CODES:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
