"""Loads that fail: every failure ends in a state that says so, after the retries that were asked for."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.lineage.signing import SigningError
from isthmus.serving.errors import RequestError
from isthmus.serving.manager import ModelManager
from isthmus.serving.routing import ModelRef
from isthmus.serving.status import Code
from isthmus.serving.versions import ModelSettings, State

M = ModelRef("m")


class Model:
    """A loaded model that does nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.signatures, self.is_closed = path, {}, False

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True


class Loads:
    """A loader that raises one failure after another, then loads; and how often it was called."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.count = [*failures], 0

    def __call__(self, _name: str, _version: int, path: Path) -> Any:
        """Raise the next failure, or load."""
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return Model(path)


Start = Callable[..., ModelManager]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts managers, and stops them at the end."""
    started: list[ModelManager] = []

    def build(load: Any, **options: Any) -> ModelManager:
        manager = ModelManager(
            load, **{"poll_wait_seconds": 0.05, "load_retry_interval_seconds": 0, **options}
        )
        started.append(manager)
        manager.start()
        return manager

    yield build
    for manager in started:
        manager.stop()


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    """Model m with version 1 on disk."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"")
    return ModelSettings(name="m", base_path=tmp_path / "m")


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (RequestError(Code.DATA_LOSS, "a checksum"), Code.DATA_LOSS, "a checksum"),
        (SigningError("the key is none"), Code.INTERNAL, "SigningError: the key is none"),
        (FileNotFoundError(2, "gone", "x"), Code.INTERNAL, "FileNotFoundError: [Errno 2] gone: 'x'"),
        (AssertionError("a MetaGraphDef"), Code.INTERNAL, "AssertionError: a MetaGraphDef"),
    ],
)
def test_whatever_a_load_raises_ends_the_version(
    start: Start, settings: ModelSettings, failure: Exception, code: Code, text: str
) -> None:
    load = Loads(failure, failure, failure)
    manager = start(load, max_num_load_retries=2)
    with pytest.raises(RequestError) as caught:
        manager.reload([settings], timeout_s=30)
    assert caught.value.code is Code.UNKNOWN
    assert f"due to error: {code.name}: {text}" in caught.value.message
    (servable,) = manager.statuses(M)
    assert (servable.state, servable.error.code, servable.error.message) == (State.END, code, text)
    assert load.count == 3
    assert not manager.is_loading()


@pytest.mark.parametrize("failure", [RequestError(Code.NOT_FOUND, "no variables"), OSError("stale handle")])
def test_a_version_that_becomes_readable_on_the_second_try(
    start: Start, settings: ModelSettings, failure: Exception
) -> None:
    load = Loads(failure)
    manager = start(load, max_num_load_retries=1)
    manager.reload([settings], timeout_s=30)
    assert load.count == 2
    (servable,) = manager.statuses(M)
    assert (servable.state, servable.error) == (State.AVAILABLE, None)


def test_the_pause_between_two_tries_ends_with_the_version(start: Start, settings: ModelSettings) -> None:
    """A long pause is not sat out for a version that nobody wants any more."""
    failed = threading.Event()

    class Signals(Loads):
        def __call__(self, _name: str, _version: int, path: Path) -> Any:
            try:
                return super().__call__(_name, _version, path)
            finally:
                failed.set()

    load = Signals(*[OSError("no")] * 9)
    manager = start(load, max_num_load_retries=5, load_retry_interval_seconds=600)
    with pytest.raises(RequestError, match="no version of m became available in time"):
        manager.reload([settings], timeout_s=0.5)
    assert failed.wait(30)
    manager.reload([], timeout_s=30)
    with manager._changed:
        assert manager._changed.wait_for(lambda: manager.statuses(M)[0].state is State.END, 30)
    assert load.count == 1
