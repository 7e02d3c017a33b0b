"""A server in a container is gone when nobody needs it. Validation through one is test_server_validator's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container_engine import FakeEngine

from isthmus.tfx_pipeline import external_server
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.external_server import ExternalServer, image_command

MakeEngine = Callable[..., FakeEngine]


@pytest.fixture
def make_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    """A Docker whose containers serve nothing: they sleep."""
    made = []

    def make(*, client_ends: bool) -> FakeEngine:
        sleeper = tmp_path / "sleeper"
        sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
        sleeper.chmod(0o755)
        made.append(FakeEngine(tmp_path / "engine", server=[str(sleeper)], client_ends=client_ends))
        monkeypatch.setenv("PATH", str(made[0].path.parent), prepend=":")
        return made[0]

    yield make
    for engine in made:
        engine.clear()


def start(tmp_path: Path) -> ExternalServer:
    """A server in a container, not entered yet."""
    command = image_command("tensorflow/serving:2.19")
    return ExternalServer(command, model_name="colours", saved_model=tmp_path, start_timeout_s=1)


@pytest.mark.parametrize("client_ends", [True, False])
def test_a_container_is_removed(
    *, client_ends: bool, make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its client has to be killed: the client's death alone leaves it running."""
    engine = make_engine(client_ends=client_ends)
    monkeypatch.setattr(external_server, "_STOP_TIMEOUT_S", 5.0 if client_ends else 0.5)
    server = start(tmp_path)
    with pytest.raises(PipelineError, match="the model server had no model within 1 s"), server:
        pytest.fail("a container that sleeps serves no model")
    (run, *removals) = engine.calls()
    assert run[:2] == ["run", "--rm"]
    assert removals == [["rm", "-f", server.container]] * 2
    assert engine.containers() == []


def test_a_container_that_cannot_be_removed_is_named(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(client_ends=True)
    engine.path.write_text("#!/bin/sh\n[ $1 = run ] && exit 125\necho no permission >&2\nexit 1\n")
    server = start(tmp_path)
    with (
        caplog.at_level(logging.WARNING, logger=external_server.__name__),
        pytest.raises(PipelineError, match="the model server stopped with exit code 125: it said nothing"),
        server,
    ):
        pytest.fail("the engine starts nothing")
    assert caplog.messages == [
        f"the container {server.container} could not be removed and may serve on: no permission"
    ]
