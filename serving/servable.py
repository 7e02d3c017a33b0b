"""One version of one model while it lives: its state, its loaded graph, and who is using it."""

import logging
import threading
from pathlib import Path
from typing import Protocol

from isthmus.serving.errors import RequestError
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.versions import State

__all__ = ["Loader", "Servable", "load_error"]

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Loads and warms up one version; called in a pool thread."""

    def __call__(self, name: str, version: int, path: Path) -> LoadedModel: ...


class Servable:
    """One version of one model: its state, its loaded graph and the number of requests that are using it."""

    def __init__(self, name: str, version: int, path: Path) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.state = State.START
        self.error: RequestError | None = None
        self.is_aspired = True
        self.model: LoadedModel | None = None
        self._num_users = 0
        self._is_retired = False
        self._unused = threading.Condition()

    def acquire(self) -> LoadedModel | None:
        """The loaded model, kept from being unloaded until `release`; None when it is already on its way
        out."""
        with self._unused:
            if self._is_retired:
                return None
            self._num_users += 1
            return self.model

    def release(self) -> None:
        """The counterpart of `acquire`."""
        with self._unused:
            self._num_users -= 1
            if not self._num_users:
                self._unused.notify_all()

    def retire(self) -> LoadedModel | None:
        """Wait until no request uses the model, hand it out to no further one, and return it for closing."""
        with self._unused:
            self._unused.wait_for(lambda: self._num_users == 0)
            self._is_retired = True
            model, self.model = self.model, None
            return model


def load_error(failure: Exception) -> RequestError:
    """What a version whose load raised this ends with: without an error it would be LOADING for ever, and the
    start or a ReloadConfig would wait for it."""
    if isinstance(failure, RequestError):
        return failure
    logger.error("a load crashed", exc_info=failure)
    return RequestError(Code.INTERNAL, f"{type(failure).__name__}: {failure}")
