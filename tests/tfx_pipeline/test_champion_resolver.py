"""ChampionResolver against a real registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts

from isthmus.export import bundle as bundles
from isthmus.lineage import registry, tracking
from isthmus.tfx_pipeline import champion_resolver
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.errors import PipelineError

Resolve = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, migrated_store: Path) -> Path:
    """A home folder with an empty registry."""
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_store, tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


@pytest.fixture
def resolve(execute: Callable[..., None], artifact_at: Callable[..., Any], tmp_path: Path) -> Resolve:
    """Run the component for a candidate; returns the baseline artifact."""

    def run(candidate: Any) -> Any:
        baseline = artifact_at(standard_artifacts.Model, tmp_path / "baseline")
        execute(
            champion_resolver.Executor,
            inputs={"model": candidate},
            outputs={"baseline": baseline},
            properties={"name": "colours", "home": str(tmp_path / "home"), "tracking_uri": ""},
        )
        return baseline

    return run


def register(home: Path, bundle: Path, pushed: Path) -> registry.Version:
    """Register a bundle; the first becomes champion."""
    tracking.connect(home)
    return registry.register_version(
        name="colours",
        manifest=bundles.load(bundle).manifest,
        bundle=bundle,
        pushed_path=pushed,
        served_version=1,
    )


@pytest.fixture
def champion(make_bundle: Callable[..., Path], tmp_path: Path) -> registry.Version:
    """The bad model is champion; its bundle and its pushed version are copies that a test may change."""
    bundle = Path(shutil.copytree(make_bundle(quality="bad"), tmp_path / "champion"))
    pushed = Path(shutil.copytree(bundle / "saved_model", tmp_path / "serving" / "1"))
    return register(tmp_path / "home", bundle, pushed)


def test_no_champion(make_model: Callable[..., Any], resolve: Resolve) -> None:
    assert resolve(make_model()).get_int_custom_property(HAS_MODEL) == 0


def test_the_champion_is_the_baseline(
    make_model: Callable[..., Any], resolve: Resolve, champion: registry.Version
) -> None:
    baseline = resolve(make_model())
    assert baseline.get_int_custom_property(HAS_MODEL) == 1
    assert baseline.get_int_custom_property("version") == champion.version == 1
    assert baseline.get_string_custom_property("saved_model_digest") == champion.saved_model_digest
    assert Path(baseline.uri, "Format-Serving", "saved_model.pb").is_file()


def test_a_candidate_is_not_compared_with_itself(
    make_model: Callable[..., Any], resolve: Resolve, champion: registry.Version
) -> None:
    assert champion.aliases == ("challenger", "champion")
    assert resolve(make_model(quality="bad")).get_int_custom_property(HAS_MODEL) == 0


def test_a_pushed_version_that_was_changed_is_passed_over(
    make_model: Callable[..., Any], resolve: Resolve, champion: registry.Version, tmp_path: Path
) -> None:
    (tmp_path / "serving" / "1" / "saved_model.pb").write_bytes(b"something else")
    baseline = resolve(make_model())
    original = tmp_path / "champion" / "saved_model" / "saved_model.pb"
    assert Path(baseline.uri, "Format-Serving", "saved_model.pb").read_bytes() == original.read_bytes()


def test_a_champion_that_is_nowhere_stops_the_run(
    make_model: Callable[..., Any], resolve: Resolve, champion: registry.Version, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "serving")
    shutil.rmtree(tmp_path / "champion")
    with pytest.raises(
        PipelineError,
        match=r"the champion is to be compared with, and no intact copy of .* colours version 1 is left",
    ):
        resolve(make_model())


def test_a_champion_with_other_classes_cannot_be_compared_with(
    make_model: Callable[..., Any], resolve: Resolve, champion: registry.Version
) -> None:
    candidate = make_model()
    path = Path(candidate.uri, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["model"]["labels"] = ["blue", "green", "yellow"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        PipelineError, match=r"version 1, answers with other classes than this model .red, yellow."
    ):
        resolve(candidate)
