"""Models that must not get through, each against the same pushed champion: one line says why.

All runs share a home folder, so what does not depend on the model is computed once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isthmus.lineage import gates, registry
from isthmus.tfx_pipeline import publishing
from isthmus.tfx_pipeline.config import EvaluationGate, PipelineConfig, ServerGate
from isthmus.tfx_pipeline.errors import NotPushedError
from isthmus.tfx_pipeline.run import PipelineResult, run_local

pytestmark = pytest.mark.slow

Run = Callable[..., PipelineResult]


@pytest.fixture(scope="module")
def run(shared_images: Path, migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the pipeline in the module's home folder."""
    home = tmp_path_factory.mktemp("blocked")
    shutil.copy(migrated_store, home / "mlflow.db")

    def call(bundle: Path, *, push_to: str | None = None, num_images: int = 3, **gate: Any) -> PipelineResult:
        config = PipelineConfig(
            # Low enough that every model passes it: each story has a gate of its own.
            evaluation=EvaluationGate(**{"min_accuracy": 0.2, "max_accuracy_drop": 1.0, **gate}),
            server=ServerGate(num_images=num_images, num_requests=3),
            push_to=push_to,
        )
        return run_local(name="colours", bundle=bundle, data_root=shared_images, config=config, home=home)

    return call


@pytest.fixture(scope="module")
def champion(run: Run, make_bundle: Callable[..., Path]) -> PipelineResult:
    """The good model, pushed; the first is champion."""
    return run(make_bundle())


@pytest.mark.parametrize(
    ("bundle", "settings", "line"),
    [
        pytest.param(
            {"quality": "bad"},
            {"max_accuracy_drop": 0.005},
            r"Evaluator: accuracy on the whole split is 0\.6667 lower than the champion's "
            r"\(95% interval 0\.4464 to 0\.8036, n = 30\), at most 0\.005 is allowed",
            id="worse than the champion",
        ),
        pytest.param(
            {"quality": "blind to blue"},
            {"min_accuracy": 0.6, "min_class_accuracy": 0.5, "min_slice_images": 10},
            r"Evaluator: accuracy on class blue is 0\.0000 \(95% interval 0\.0000 to 0\.2775, n = 10\), "
            r"at least 0\.5 is wanted",
            id="good overall, bad on one slice",
        ),
        pytest.param(
            {"fault": "swapped channels"},
            {},
            r"ParityValidator: .*limit 1\.0e-03, worst on test/.*",
            id="RGB read as BGR",
        ),
        pytest.param(
            {"fault": "wrong normalisation"},
            {},
            r"ParityValidator: .*limit 1\.0e-03, worst on test/.*",
            id="another normalisation",
        ),
        pytest.param(
            {"fault": "dies at batch 7"},
            {"num_images": 7},
            r"ServerValidator: the server answered UNAVAILABLE: .*",
            id="the server crashes",
        ),
    ],
)
def test_not_pushed(
    bundle: dict[str, Any],
    settings: dict[str, Any],
    line: str,
    champion: PipelineResult,
    run: Run,
    make_bundle: Callable[..., Path],
) -> None:
    base = str(Path(champion.pushed).parent)
    with pytest.raises(NotPushedError) as raised:
        run(make_bundle(**bundle), **settings)
    assert re.fullmatch(f"not pushed, because {line}", str(raised.value)), str(raised.value)
    assert publishing.versions(base) == [champion.version]
    assert [version.version for version in registry.list_versions("colours")] == [champion.registered_version]


def test_the_same_model_pushed_to_an_object_store(
    champion: PipelineResult, run: Run, make_bundle: Callable[..., Path], bucket: str
) -> None:
    """Only where it is pushed has changed: nothing but the push runs again, and the registry knows the place."""
    result = run(make_bundle(), push_to=f"{bucket}/story")
    assert set(result.run) == {"Pusher", "Registrar"}
    assert publishing.versions(f"{bucket}/story/colours") == [result.version]
    assert result.pushed == f"{bucket}/story/colours/{result.version}"
    version = registry.get("colours", "champion")
    assert (version.version, version.pushed_place) == (champion.registered_version, result.pushed)
    assert gates.check_pushed(version).text == f"every file of {result.pushed} has its recorded hash"
