"""Damaged TFRecord files: what is whole is read, and what is not is named."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from isthmus.tfx_pipeline import sources, tfrecords
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.prediction_inputs import find

TORN = "the file ends here, for it is no whole TFRecord file: "
FOOTER_BYTES = 4


def example(image: Path, *, name: str | None = None) -> bytes:
    features = {"image/encoded": image.read_bytes(), "image/class/text": image.parent.name.encode()}
    if name is not None:
        features["image/filename"] = name.encode()
    return bytes(
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for key, value in features.items()
                }
            )
        ).SerializeToString()
    )


def write(path: Path, records: list[bytes], *, compression: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return path


def damage(path: Path, position: int) -> None:
    """Turn one byte over."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "whole", "reason"),
    [
        (lambda content: content, 3, None),
        (lambda content: content[:-1], 2, "Not a valid TFRecord. Fewer than 9 bytes"),
        (lambda content: content[: -21 + 5], 2, "Not a valid TFRecord. Fewer than 12 bytes"),
        (lambda content: content[:-1] + b"?", 2, "Not a valid TFRecord. Mismatch of data mask"),
        (lambda content: b"?" + content[1:], 0, "Not a valid TFRecord. Mismatch of length mask"),
        (lambda content: content + b"more", 3, "Not a valid TFRecord. Fewer than 12 bytes"),
    ],
)
def test_a_file_is_read_up_to_its_damage(
    tmp_path: Path, damaged: Callable[[bytes], bytes], whole: int, reason: str | None
) -> None:
    records = [b"first", b"other", b"third"]
    path = write(tmp_path / "a.tfrecord", records)
    path.write_bytes(damaged(path.read_bytes()))
    assert list(tfrecords.read(str(path))) == records[:whole] + ([] if reason is None else [TORN + reason])


def test_gzip_that_is_none_or_is_cut(tmp_path: Path) -> None:
    records = [bytes([number]) * 40 for number in range(3)]
    path = write(tmp_path / "a.tfrecord.gz", records, compression="GZIP")
    assert list(tfrecords.read(str(path))) == records
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    *read, last = tfrecords.read(str(path))
    assert read == records[: len(read)]
    assert isinstance(last, str)
    assert last.startswith(TORN)
    path.write_bytes(gzip.decompress(content))
    (only,) = tfrecords.read(str(path))
    assert str(only).startswith(f"{TORN}Error -3 while decompressing")


def test_damaged_records_are_counted_as_unreadable_and_named(
    images: Path, tmp_path: Path, ingest: Callable[..., Any]
) -> None:
    """Neither a record that is no Example nor a broken file ends the run: the rest of the images is there."""
    folder = tmp_path / "records"
    of = {split: sorted((images / split).rglob("*.png")) for split in ("train", "val", "test")}
    damage(write(folder / "train/a.tfrecord", [example(path) for path in of["train"]]), -FOOTER_BYTES)
    write(folder / "train/b.tfrecord", [example(of["train"][-1])])
    torn = write(folder / "val/a.tfrecord", [example(path) for path in of["val"]])
    torn.write_bytes(torn.read_bytes()[:-1])
    (of["test"][0].parent / "broken.png").write_bytes(b"no image")
    broken = example(of["test"][0].parent / "broken.png")
    write(folder / "test/a.tfrecord", [b"\xff\xff", broken, *(example(path) for path in of["test"])])
    found = ingest(folder, tmp_path / "examples", config=InputConfig(format="tfrecord"))
    report = read_report(found)
    assert report["num_images"] == {"train": 48, "val": 17, "test": 30}
    assert report["num_corrupt"] == 4
    reasons = {line["file"]: line["reason"] for line in report["corrupt"]}
    assert reasons["test/a.tfrecord#0"] == "the record is no tf.train.Example"
    assert reasons["test/a.tfrecord#1"] == "cannot identify image file"
    assert reasons["train/a.tfrecord#47"] == f"{TORN}Not a valid TFRecord. Mismatch of data mask"
    assert reasons["val/a.tfrecord#17"].startswith(f"{TORN}Not a valid TFRecord. Fewer than ")
    assert len(reasons["val/a.tfrecord#17"]) < 200


def test_a_damaged_prediction_log(images: Path, tmp_path: Path, ingest_source: Callable[..., Any]) -> None:
    log = prediction_log_pb2.PredictionLog()
    image = (images / "test/red/000.png").read_bytes()
    log.predict_log.request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image]))
    log.predict_log.response.outputs["label"].CopyFrom(tf.make_tensor_proto([b"red"]))
    asked = prediction_log_pb2.PredictionLog()
    asked.predict_log.request.inputs["examples"].CopyFrom(tf.make_tensor_proto([b"\xff"]))
    asked.predict_log.response.outputs["label"].CopyFrom(tf.make_tensor_proto([b"red"]))
    folder = tmp_path / "log"
    records = [log.SerializeToString(), b"\xff\xff", asked.SerializeToString(), log.SerializeToString()]
    path = write(folder / "a.tfrecord", records)
    path.write_bytes(path.read_bytes()[:-1])
    report = read_report(ingest_source(sources.look_at_log(str(folder)), tmp_path / "examples"))
    assert report["num_images"] == {"serving": 1}
    assert [line["file"] for line in report["corrupt"]] == [f"a.tfrecord#{number}" for number in (1, 2, 3)]
    assert [line["reason"] for line in report["corrupt"]][:2] == [
        "the record is no tensorflow.serving.PredictionLog",
        "cannot identify image file",
    ]


def test_batch_prediction_has_a_row_for_a_record_that_is_no_example(images: Path, tmp_path: Path) -> None:
    image = images / "test/red/000.png"
    path = write(tmp_path / "a.tfrecord", [b"\xff\xff", example(image), example(image, name="named.png")])
    (shard,) = find(str(path), shard_size=10).shards
    assert list(shard.images()) == [
        ("a.tfrecord#0", "the record is no tf.train.Example"),
        ("a.tfrecord#1", image.read_bytes()),
        ("named.png", image.read_bytes()),
    ]
