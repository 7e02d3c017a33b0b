"""A tracking server that is away for a while: training goes on, and the record catches up.

What cannot be written now waits, with the time at which it happened, and is written before the next thing. At the end
the run waits for the server; if it stays away, the state is saved and the same command records it later.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from isthmus.training.errors import TrainingError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own settings while an epoch is recorded: its default of seven retries stops training for minutes."""

PATIENCE_S = 600.0
"""How long the end of a run waits for the server; ISTHMUS_TRACKING_PATIENCE_S overrides it."""


@dataclass(kw_only=True)
class Backlog:
    """Calls to a tracking server that are made in order, when it answers."""

    tracking_uri: str
    waiting: deque[Callable[[], object]] = field(default_factory=deque)

    def add(self, call: Callable[[], object]) -> None:
        """Make the call after all that wait; where the server does not answer, let it wait as well."""
        self.waiting.append(call)
        try:
            with impatient():
                self._work_off()
        except Exception as problem:
            if not unreachable(problem):
                raise
            if len(self.waiting) == 1:
                log.warning(
                    "the tracking server %s does not answer; training goes on, and what it has to record waits",
                    self.tracking_uri,
                )

    def settled(self, call: Callable[[], Answer]) -> Answer:
        """Make all that waits and then this call, with patience.

        Raises TrainingError when the server stays away: the run's state is saved, and the same command goes on.
        """
        patience = float(os.environ.get("ISTHMUS_TRACKING_PATIENCE_S", PATIENCE_S))
        deadline, pause = time.monotonic() + patience, 1.0
        while True:
            try:
                with impatient():
                    self._work_off()
                return call()
            except Exception as problem:
                if not unreachable(problem):
                    raise
                if time.monotonic() + pause > deadline:
                    raise TrainingError(
                        f"the tracking server {self.tracking_uri} did not answer for {patience:.0f} s; what was "
                        f"trained is kept, and the same command records and publishes it"
                    ) from problem
            log.warning("waiting for the tracking server %s ...", self.tracking_uri)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)

    def _work_off(self) -> None:
        while self.waiting:
            self.waiting[0]()
            self.waiting.popleft()


def unreachable(problem: BaseException) -> bool:
    """Whether an error says that the server could not be reached, or that something before it could not reach it."""
    import requests

    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(
            seen, (requests.exceptions.ConnectionError, requests.exceptions.Timeout, ConnectionError)
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    text = str(problem)
    return any(f"failed with error code {code}" in text for code in (502, 503, 504)) or "Max retries" in text


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow gives up soon inside, in every thread; settings of your own stay."""
    before = {name: os.environ.get(name) for name in IMPATIENT}
    os.environ.update({name: value for name, value in IMPATIENT.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
