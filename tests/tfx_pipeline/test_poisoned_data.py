"""Poisoned data through the whole local pipeline: nothing is pushed, and one line says why."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from isthmus.tfx_pipeline.config import EvaluationGate, PipelineConfig, ServerGate
from isthmus.tfx_pipeline.errors import NotPushedError
from isthmus.tfx_pipeline.run import PipelineResult, run_local
from isthmus.tfx_pipeline.schema import curate

LABELS = ["blue", "green", "red"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    """One home for all stories: what does not change is taken from the cache."""
    home = tmp_path_factory.mktemp("poisoned") / "home"
    home.mkdir()
    shutil.copy(migrated_store, home / "mlflow.db")
    return home


Run = Callable[..., PipelineResult]


@pytest.fixture(scope="module")
def run(home: Path, shared_images: Path, make_bundle: Callable[..., Path]) -> Run:
    """Run the good bundle on a folder, with the schema of the good images or without."""
    schema = home.parent / "colours.schema.pbtxt"

    def call(folder: Path, *, curated: bool = True) -> PipelineResult:
        config = PipelineConfig(
            evaluation=EvaluationGate(min_accuracy=0.9),
            server=ServerGate(num_images=3),
            schema=schema if curated else None,
        )
        return run_local(name="colours", bundle=make_bundle(), data_root=folder, config=config, home=home)

    result = curate(
        name="colours",
        data_root=shared_images,
        labels=LABELS,
        config=PipelineConfig(),
        home=home,
        path=schema,
        update=False,
    )
    assert result.written
    first = call(shared_images)
    # The schema was made by the same two components.
    assert {"ImageExampleGen", "StatisticsGen"} <= set(first.cached)
    return call


def refused(run: Run, home: Path, folder: Path, *, curated: bool = True) -> str:
    """The one line; nothing new is served."""
    before = sorted(path.name for path in (home / "serving" / "colours").iterdir())
    with pytest.raises(NotPushedError) as raised:
        run(folder, curated=curated)
    assert sorted(path.name for path in (home / "serving" / "colours").iterdir()) == before
    text = str(raised.value)
    assert text.startswith("not pushed, because ")
    assert "\n" not in text
    return text


def test_a_class_vanished(run: Run, home: Path, images: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.rmtree(images / split / "red")
    text = refused(run, home, images)
    for split in ("train", "val", "test"):
        assert (
            f"ExampleValidator: {split} split, image/class/text: expected all of blue, green, red, "
            "found no image of red"
        ) in text


def test_all_images_are_dark(run: Run, home: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Found by the schema's range, and by the comparison with the data that passed before."""
    caplog.set_level(logging.INFO, logger="isthmus.tfx_pipeline")
    for path in images.rglob("*.png"):
        with Image.open(path) as image:
            dark = image.point(lambda level: level // 20)
        dark.save(path)
    text = refused(run, home, images)
    assert re.search(
        r"train split, image/brightness: expected \d+\.?\d* to \d+\.?\d*, found \d\.?\d* to \d\.?\d*", text
    )
    assert re.search(
        r"train split, image/brightness: expected a Jensen-Shannon divergence of at most 0\.\d+ from the earlier "
        r"data \(mean \d+\.?\d*, .*\), found 1 \(mean \d\.\d+",
        text,
    )
    # TFX names the component in lines of its own.
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("isthmus.")]
    page = next(text.split()[-1] for text in ours if " DataReport " in text)
    report = Path(page).read_text()
    assert "nothing is pushed" in report
    assert "image/brightness" in report
    assert not re.search(r"(?:src|href)\s*=|https?://|@import", report)


def test_labels_shifted(run: Run, home: Path, images: Path) -> None:
    """Almost everything is called blue: the shares of the classes are not those of the data before."""
    for split in ("train", "val", "test"):
        for label in ("green", "red"):
            for path in sorted((images / split / label).iterdir())[1:]:
                path.rename(images / split / "blue" / f"{label}-{path.name}")
    text = refused(run, home, images)
    assert re.search(
        r"train split, image/class/text: expected every share within 0\.\d+ of the earlier data \(L-infinity\), "
        r"found blue is 95\.8% here and 33\.3% there",
        text,
    )


def test_labels_rolled(run: Run, home: Path, images: Path) -> None:
    """Every class has its neighbour's images: no statistics of one feature can see it, and the Evaluator does."""
    for split in ("train", "val", "test"):
        for label in LABELS:
            (images / split / label).rename(images / split / f"{label}.old")
        for index, label in enumerate(LABELS):
            (images / split / f"{label}.old").rename(images / split / LABELS[(index + 1) % 3])
    text = refused(run, home, images)
    assert "ExampleValidator" not in text
    assert re.search(
        r"Evaluator: accuracy on the whole split is 0\.0000 \(.*n = 30\), at least 0\.9 is wanted", text
    )


def test_test_images_that_were_trained_on(run: Run, home: Path, images: Path) -> None:
    for path in sorted((images / "train" / "red").iterdir())[:3]:
        shutil.copy(path, images / "test" / "red" / f"seen-{path.name}")
    text = refused(run, home, images)
    assert (
        "ExampleValidator: the images: 3 of the 51 val and test images are copies of images in another split: "
        "test/red/seen-000.png = train/red/000.png; "
    ) in text
    assert text.endswith("pipeline.data.max_duplicate_share allows 0.01 of them")
