"""Looking at an image folder before anything heavy starts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import dataset_record, inspect

LABELS = ["blue", "green", "red"]


def test_counts_every_split(images: Path) -> None:
    assert inspect(images, labels=LABELS).num_images == {"train": 48, "val": 18, "test": 30}


def test_fingerprint_is_stable_and_sees_a_changed_image(images: Path) -> None:
    before = inspect(images, labels=LABELS).fingerprint
    assert inspect(images, labels=LABELS).fingerprint == before
    os.utime(images / "test" / "red" / "000.png", ns=(0, 0))
    assert inspect(images, labels=LABELS).fingerprint != before


def test_fingerprint_sees_a_removed_image_and_not_a_foreign_file(images: Path) -> None:
    before = inspect(images, labels=LABELS).fingerprint
    (images / "test" / "red" / "notes.txt").write_text("not an image")
    assert inspect(images, labels=LABELS).fingerprint == before
    (images / "test" / "red" / "000.png").unlink()
    assert inspect(images, labels=LABELS).fingerprint != before


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"no data folder at .*; give a folder with train, val, test inside"
    ):
        inspect(tmp_path / "nothing", labels=LABELS)


def test_missing_split(images: Path) -> None:
    shutil.rmtree(images / "val")
    with pytest.raises(PipelineError, match="has no folder 'val'"):
        inspect(images, labels=LABELS)


def test_class_folder_without_images(images: Path) -> None:
    for image in (images / "val" / "red").iterdir():
        image.unlink()
    with pytest.raises(
        PipelineError, match=r"class folder .*val/red holds no images \(\.png, \.jpg, \.jpeg, \.bmp, "
    ):
        inspect(images, labels=LABELS)


def test_split_without_classes(images: Path) -> None:
    shutil.rmtree(images / "val")
    (images / "val").mkdir()
    with pytest.raises(PipelineError, match="val holds no class folder with images"):
        inspect(images, labels=LABELS)


def test_class_that_the_model_does_not_know(images: Path) -> None:
    (images / "test" / "red").rename(images / "test" / "purple")
    with pytest.raises(
        PipelineError, match=r"test/purple is not among the model's 3 labels \(blue, green, red\)"
    ):
        inspect(images, labels=LABELS)


def test_images_outside_a_class_folder(images: Path) -> None:
    shutil.copy(images / "test" / "red" / "000.png", images / "test" / "stray.png")
    with pytest.raises(PipelineError, match=r"holds images outside a class folder, for instance stray\.png"):
        inspect(images, labels=LABELS)


def test_the_record_of_a_data_set_with_a_description(images: Path) -> None:
    described = {"schema_version": 1, "name": "colours", "source": "a camera", "digest": "d" * 64}
    (images / "dataset.json").write_text(json.dumps(described))
    assert dataset_record(inspect(images, labels=LABELS)) == {
        "name": "colours",
        "source": "a camera",
        "digest": "d" * 64,
        "splits": {"train": 48, "val": 18, "test": 30},
    }


def test_the_record_of_a_bare_folder(images: Path) -> None:
    folder = inspect(images, labels=LABELS)
    record = dataset_record(folder)
    assert (record["name"], record["source"]) == ("images", str(images))
    assert record["digest"] == folder.fingerprint
