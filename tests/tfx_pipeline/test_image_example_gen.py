"""ImageExampleGen: what the records hold, and what happens to images that cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import standard_artifacts

from isthmus.tfx_pipeline import sources
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.image_folder import IMAGE_SUFFIXES, inspect

LABELS = ["blue", "green", "red"]
Ingest = Callable[..., standard_artifacts.Examples]


def records(examples: standard_artifacts.Examples, split: str) -> list[bytes]:
    """All records of a split, sorted: their order is Beam's business."""
    files = tf.io.gfile.glob(examples.path(split=split) + "/*")
    return sorted(tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator())


def features(record: bytes) -> dict[str, Any]:
    """{name: the single value} of a record."""
    values = {}
    for name, feature in tf.train.Example.FromString(record).features.feature.items():
        (value,) = getattr(feature, feature.WhichOneof("kind")).value
        values[name] = value
    return values


def test_every_image_is_a_record_with_its_own_bytes(
    shared_images: Path, examples: standard_artifacts.Examples
) -> None:
    for split in ("train", "val", "test"):
        found = {f["image/filename"].decode(): f for f in map(features, records(examples, split))}
        on_disk = {p.relative_to(shared_images).as_posix(): p for p in (shared_images / split).rglob("*.png")}
        assert found.keys() == on_disk.keys()
        for name, path in on_disk.items():
            assert found[name]["image/encoded"] == path.read_bytes()
            assert found[name]["image/class/text"].decode() == path.parent.name
            assert found[name]["image/class/label"] == LABELS.index(path.parent.name)


def test_every_format_that_training_takes_is_ingested(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    formats = {
        ".png": b"png",
        ".jpg": b"jpeg",
        ".jpeg": b"jpeg",
        ".bmp": b"bmp",
        ".gif": b"gif",
        ".webp": b"webp",
    }
    assert set(formats) == set(IMAGE_SUFFIXES)
    with Image.open(images / "test" / "red" / "000.png") as image:
        for suffix in formats:
            image.save(images / "test" / "red" / f"as{suffix}")
    examples = ingest(images, tmp_path / "examples")
    report = json.loads(Path(examples.uri, "report.json").read_text())
    assert report["num_images"]["test"] == inspect(images, labels=LABELS).num_images["test"] == 36
    found = {f["image/filename"].decode(): f for f in map(features, records(examples, "test"))}
    for suffix, name in formats.items():
        record = found[f"test/red/as{suffix}"]
        assert record["image/format"] == name
        assert (record["image/height"], record["image/width"]) == (8, 8)
        assert record["image/brightness"] == pytest.approx(
            found["test/red/000.png"]["image/brightness"], abs=8
        )


def test_two_runs_give_the_same_records(
    shared_images: Path, examples: standard_artifacts.Examples, tmp_path: Path, ingest: Ingest
) -> None:
    again = ingest(shared_images, tmp_path / "again")
    for split in ("train", "val", "test"):
        assert records(again, split) == records(examples, split)


def test_what_is_no_image_by_name_is_ignored_and_counted(
    images: Path, tmp_path: Path, ingest: Ingest
) -> None:
    (images / "train" / "red" / "Thumbs.db").write_bytes(b"nothing")
    examples = ingest(images, tmp_path / "examples")
    report = json.loads(Path(examples.uri, "report.json").read_text())
    assert report["num_images"] == {"train": 48, "val": 18, "test": 30}
    assert report["num_ignored"] == 1


def break_two(images: Path) -> None:
    """One image that is cut off, one that never was an image."""
    cut = images / "test" / "red" / "001.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (images / "train" / "blue" / "002.png").write_bytes(b"this is no image")


def test_corrupt_images_are_left_out_and_listed(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    break_two(images)
    examples = ingest(images, tmp_path / "examples")
    assert examples.get_int_custom_property("num_images") == 94
    assert examples.get_int_custom_property("num_corrupt") == 2
    report = read_report(examples)
    assert [line["file"] for line in report["corrupt"]] == ["test/red/001.png", "train/blue/002.png"]
    assert report["corrupt"][1]["reason"] == "cannot identify image file"
    names = {features(record)["image/filename"] for record in records(examples, "test")}
    assert b"test/red/001.png" not in names
    assert len(names) == 29


def test_copies_across_splits_are_counted_and_named(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    shutil.copy(images / "train" / "red" / "000.png", images / "test" / "red" / "copy.png")
    shutil.copy(images / "train" / "red" / "001.png", images / "train" / "blue" / "wrong label.png")
    copies = read_report(ingest(images, tmp_path / "examples"))["copies"]
    assert (copies["num_copies"], copies["num_leaked"], copies["num_contradictory"]) == (2, 1, 2)
    across, within = copies["groups"]
    assert across["files"] == ["test/red/copy.png", "train/red/000.png"]
    assert across["splits"] == {"test": 1, "train": 1}
    assert within["files"] == ["train/blue/wrong label.png", "train/red/001.png"]
    assert within["num_labels"] == 2


def test_a_class_that_the_model_does_not_know(
    shared_images: Path, tmp_path: Path, ingest_source: Ingest
) -> None:
    """`look` would have refused it; on a cluster the folder may have changed since."""
    source = sources.look(InputConfig(), data_root=shared_images, labels=LABELS)
    with pytest.raises(PipelineError, match=r"32 images belong to no class of the model: test/red/000.png"):
        ingest_source(source, tmp_path / "examples", labels=["blue", "green"])


def test_an_empty_split(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    for image in (images / "val").rglob("*.png"):
        image.write_bytes(b"this is no image")
    with pytest.raises(PipelineError, match=r"no readable image in val of .*\(18 unreadable\)"):
        ingest(images, tmp_path / "examples")
