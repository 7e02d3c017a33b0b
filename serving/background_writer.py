"""Lines and records written by a thread of their own: a request never waits for a disk, and a full disk never
fails one."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["BackgroundWriter"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_STOP = object()


class BackgroundWriter(Generic[T]):
    """Hands items to `write`, one after the other, in a thread.

    Args:
        what: what is written, for the log.
        write: writes one item; an OSError loses it.
        close: called once at the end.
        max_waiting: items that may wait; beyond them an item is lost.

    Attributes:
        num_written: items written.
        num_lost: items lost, to a full queue or to an error.
    """

    def __init__(
        self, what: str, write: Callable[[T], None], close: Callable[[], None], *, max_waiting: int = 10_000
    ) -> None:
        self.num_written = 0
        self.num_lost = 0
        self._what, self._write, self._close = what, write, close
        self._queue: queue.Queue[object] = queue.Queue(max_waiting)
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    def offer(self, item: T) -> None:
        """Write it soon, or lose it; returns at once."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.num_lost += 1

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and close."""
        try:
            self._queue.put(_STOP, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not _STOP:
            try:
                self._write(item)  # type: ignore[arg-type]
            except (OSError, ValueError) as error:
                self._fail(error)
            else:
                self.num_written += 1
                if self._is_failing:
                    # A full disk may have swallowed the first warning, too.
                    logger.warning("%s: written again; %d entries were lost", self._what, self.num_lost)
                self._is_failing = False
        try:
            self._close()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.num_lost += 1
        if not self._is_failing:
            logger.warning("%s: entries are being lost: %s", self._what, error)
        self._is_failing = True
