"""Which versions lie under a base path, and what of it cannot be read."""

import logging
from pathlib import Path

import pytest

from isthmus.serving.base_paths import BasePaths, newest_version
from isthmus.serving.versions import ModelSettings, VersionPolicy


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    """A model with versions 1 and 2, and a 3 that cannot be looked into, whoever asks: root reads every folder, but
    nobody follows a link to a name of 300 letters."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    (tmp_path / "3").symlink_to("x" * 300)
    return ModelSettings(name="m", base_path=tmp_path, policy=VersionPolicy(kind="all"))


def test_an_unreadable_version_hides_no_other(
    settings: ModelSettings, caplog: pytest.LogCaptureFixture
) -> None:
    paths = BasePaths()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert paths.wanted_versions(settings, ()) == {1: "1", 2: "2"}
    (warning,) = caplog.messages
    assert warning.startswith("A version of servable m cannot be read: ")
    assert str(settings.base_path / "3") in warning
    assert newest_version(settings.base_path) == settings.base_path / "2"


def test_a_version_that_runs_goes_on_when_it_becomes_unreadable(settings: ModelSettings) -> None:
    assert BasePaths().wanted_versions(settings, {3}) == {1: "1", 2: "2", 3: "3"}


def test_a_base_path_that_is_gone_says_nothing(
    settings: ModelSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = ModelSettings(name="m", base_path=tmp_path / "gone")
    assert BasePaths().wanted_versions(gone, {1}) is None
    assert "Could not find base path" in caplog.text
