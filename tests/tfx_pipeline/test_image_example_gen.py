"""ImageExampleGen: what the records hold, and what happens to images that cannot be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import standard_artifacts

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import example_of
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


def test_features_describe_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    found = features(example_of(file.getvalue(), filename="a/b.png", label=2, text="red").SerializeToString())
    assert found.pop("image/mean") == pytest.approx(pixels.mean(), rel=1e-6)
    assert found.pop("image/std") == pytest.approx(pixels.std(), rel=1e-6)
    assert found.pop("image/aspect") == pytest.approx(9 / 5)
    assert found == {
        "image/encoded": file.getvalue(),
        "image/format": b"png",
        "image/filename": b"a/b.png",
        "image/height": 5,
        "image/width": 9,
        "image/channels": 3,
        "image/bytes": len(file.getvalue()),
        "image/class/label": 2,
        "image/class/text": b"red",
    }


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("P", 1)])
def test_channels_are_the_files_own(mode: str, channels: int) -> None:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "PNG")
    found = features(example_of(file.getvalue(), filename="x.png", label=0, text="x").SerializeToString())
    assert found["image/channels"] == channels


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
        assert record["image/mean"] == pytest.approx(found["test/red/000.png"]["image/mean"], abs=8)


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
    assert report["num_ignored"] == {"train": 1, "val": 0, "test": 0}


def break_two(images: Path) -> None:
    """One image that is cut off, one that never was an image."""
    cut = images / "test" / "red" / "001.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (images / "train" / "blue" / "002.png").write_bytes(b"this is no image")


def test_corrupt_images_are_named_and_counted(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    break_two(images)
    with pytest.raises(PipelineError) as raised:
        ingest(images, tmp_path / "examples")
    text = str(raised.value)
    assert text.startswith("2 of 96 images cannot be read: test/red/001.png (")
    assert "train/blue/002.png (cannot identify image file)" in text
    assert text.endswith("Remove them, or set pipeline.on_corrupt to quarantine")


def test_quarantine_leaves_them_out_and_lists_them(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    break_two(images)
    examples = ingest(images, tmp_path / "examples", on_corrupt="quarantine", max_corrupt_share=0.1)
    assert examples.get_int_custom_property("num_images") == 94
    assert examples.get_int_custom_property("num_corrupt") == 2
    report = json.loads(Path(examples.uri, "report.json").read_text())
    assert [line["file"] for line in report["corrupt"]] == ["test/red/001.png", "train/blue/002.png"]
    names = {features(record)["image/filename"] for record in records(examples, "test")}
    assert b"test/red/001.png" not in names
    assert len(names) == 29


def test_too_many_for_quarantine(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    break_two(images)
    with pytest.raises(
        PipelineError, match=r"2 of 96 images .* more than pipeline.max_corrupt_share 0.01 allows"
    ):
        ingest(images, tmp_path / "examples", on_corrupt="quarantine")


def test_a_class_that_the_model_does_not_know(shared_images: Path, tmp_path: Path, ingest: Ingest) -> None:
    with pytest.raises(PipelineError, match=r"32 images belong to no class of the model: test/red/000.png"):
        ingest(shared_images, tmp_path / "examples", labels=["blue", "green"])


def test_an_empty_split(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    for image in (images / "val").rglob("*.png"):
        image.rename(image.with_suffix(".txt"))
    with pytest.raises(PipelineError, match="no readable image in val of "):
        ingest(images, tmp_path / "examples")
