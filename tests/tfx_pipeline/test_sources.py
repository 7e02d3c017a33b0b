"""Every source of images: looked at, and read by ImageExampleGen, with the same records wherever they come from."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import boto3
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from moto.server import ThreadedMotoServer
from tfx.types import standard_artifacts

from isthmus.lineage.files import sha256_file
from isthmus.lineage.splits import split_of
from isthmus.tfx_pipeline import sources
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.ingest import Rules, examples_and_findings

LABELS = ["blue", "green", "red"]
Ingest = Callable[..., standard_artifacts.Examples]


def table(examples: standard_artifacts.Examples) -> dict[bytes, tuple[str, int]]:
    """{image bytes: (split, label)} of some Examples."""
    found = {}
    for split in ("train", "val", "test"):
        files = tf.io.gfile.glob(examples.path(split=split) + "/*")
        for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            encoded = features["image/encoded"].bytes_list.value[0]
            found[encoded] = (split, features["image/class/label"].int64_list.value[0])
    return found


@pytest.fixture(scope="session")
def expected(examples: standard_artifacts.Examples) -> dict[bytes, tuple[str, int]]:
    """What every source has to give."""
    found = table(examples)
    assert len(found) == 96
    return found


def rows(images: Path) -> list[dict[str, str]]:
    return [
        {"path": path.relative_to(images).as_posix(), "label": path.parent.name, "split": path.parts[-3]}
        for path in sorted(images.rglob("*.png"))
    ]


def write_csv(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_manifests(
    images: Path, tmp_path: Path, ingest: Ingest, expected: dict[bytes, tuple[str, int]]
) -> None:
    lines = rows(images)
    by_csv = write_csv(images / "all.csv", lines)
    assert table(ingest(by_csv, tmp_path / "csv")) == expected
    indices = [{**line, "label": LABELS.index(line["label"])} for line in lines]
    pyarrow.parquet.write_table(pa.Table.from_pylist(indices), images / "all.parquet")
    assert table(ingest(images / "all.parquet", tmp_path / "parquet")) == expected
    # The format that is asked for wins over the name.
    misnamed = write_csv(images / "listed.parquet", lines)
    assert table(ingest(misnamed, tmp_path / "misnamed", config=InputConfig(format="csv"))) == expected


def test_tfrecords_of_two_conventions(
    images: Path, tmp_path: Path, ingest: Ingest, expected: dict[bytes, tuple[str, int]]
) -> None:
    (tmp_path / "records").mkdir()
    for split, options in (("train", "GZIP"), ("validation", ""), ("test", "")):
        suffix = ".gz" if options else ""
        path = tmp_path / "records" / f"colours-{split}.tfrecord-00000-of-00001{suffix}"
        keys = ("image/encoded", "image/class/text") if options else ("image", "label")
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for encoded, (of, label) in expected.items():
                if of == sources.split_of_file(path.name, ""):
                    value: Any = {"bytes_list": tf.train.BytesList(value=[LABELS[label].encode()])}
                    if not options:
                        value = {"int64_list": tf.train.Int64List(value=[label])}
                    feature = {
                        keys[0]: tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                        keys[1]: tf.train.Feature(**value),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=feature))
                    writer.write(example.SerializeToString())
    found = ingest(tmp_path / "records", tmp_path / "examples", config=InputConfig(format="tfrecord"))
    assert table(found) == expected


def test_a_class_map_gives_other_names_their_index(
    images: Path, tmp_path: Path, ingest: Ingest, expected: dict[bytes, tuple[str, int]]
) -> None:
    """timm's: one name a line, in the order of the model's outputs."""
    for split in ("train", "val", "test"):
        for index, label in enumerate(LABELS):
            (images / split / label).rename(images / split / f"n0{index}")
    (tmp_path / "class_map.txt").write_text("n00\nn01\nn02\n")
    config = InputConfig(class_map=tmp_path / "class_map.txt")
    assert table(ingest(images, tmp_path / "examples", config=config)) == expected
    (tmp_path / "class_map.json").write_text(json.dumps({"n00": 0, "n01": 1, "n02": 3}))
    with pytest.raises(PipelineError, match=r"gives n02 the index 3; the model has 3 classes, 0 to 2"):
        ingest(images, tmp_path / "e2", config=InputConfig(class_map=tmp_path / "class_map.json"))


def flat(images: Path) -> Path:
    """The same images without split folders."""
    for path in sorted(images.rglob("*.png")):
        target = images / "flat" / path.parent.name / f"{path.parts[-3]}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return images / "flat"


def test_the_content_decides_the_split_and_nothing_moves(
    images: Path, tmp_path: Path, ingest: Ingest
) -> None:
    folder = flat(images)
    config = InputConfig(val_fraction=0.2, test_fraction=0.3, split_seed=5)
    first = ingest(folder, tmp_path / "1", config=config)
    before = table(first)
    assert read_report(first)["source"]["splits"] == "hash"
    for path in folder.rglob("*.png"):
        by_training = split_of(sha256_file(path), seed=5, val_fraction=0.2, test_fraction=0.3)
        assert before[path.read_bytes()][0] == by_training
    assert {split for split, _ in before.values()} == {"train", "val", "test"}
    # A third goes, the others get new names, and one comes twice.
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number % 3 == 0:
            path.unlink()
        else:
            path.rename(path.with_name(f"new-{number}.png"))
    some = next(folder.rglob("*.png"))
    shutil.copy(some, some.with_name("copy.png"))
    second = ingest(folder, tmp_path / "2", config=config)
    after = table(second)
    assert len(after) == 64
    assert all(before[encoded] == found for encoded, found in after.items())
    copies = read_report(second)["copies"]
    assert (copies["num_copies"], copies["num_leaked"]) == (1, 0)


def test_defaults_of_the_split_are_trainings() -> None:
    """By source: training's package needs torch, which stays out of this process."""
    text = Path(__file__).parents[2].joinpath("training/config.py").read_text()
    assert f"val_fraction: float = {sources.VAL_FRACTION}\n" in text
    assert f"test_fraction: float = {sources.TEST_FRACTION}\n" in text
    assert f"split_seed: int = {sources.SPLIT_SEED}\n" in text


def test_spans_are_found_and_kept_with_the_examples(images: Path, tmp_path: Path, ingest: Ingest) -> None:
    for place in ("span-1/v1", "span-2/v1", "span-2/v3"):
        shutil.copytree(images, tmp_path / "data" / place)
    pattern = tmp_path / "data" / "span-{SPAN}" / "v{VERSION}"
    examples = ingest(str(pattern), tmp_path / "examples")
    assert (examples.span, examples.version) == (2, 3)
    assert read_report(examples)["source"]["path"] == str(tmp_path / "data" / "span-2" / "v3")
    asked = ingest(str(pattern), tmp_path / "e1", config=InputConfig(span=1))
    assert (asked.span, asked.version) == (1, 1)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            [{"file": "a.png", "label": "red"}],
            r"has no column path; it has file, label. A manifest has path and",
        ),
        (
            [{"path": "a.png", "label": "red", "split": "holdout"}],
            r"row 1 has the split 'holdout'; write train",
        ),
        ([{"path": "", "label": "red"}], r"row 1 has no path"),
        (
            [
                {"path": "a.png", "label": "red", "split": "test"},
                {"path": "b.png", "label": "red", "split": ""},
            ],
            r"1 of the 2 images of .* have no split, for instance b.png; fill the column, or set",
        ),
        ([{"path": "a.png", "label": "red", "split": "test"}], r"has nothing for train, val; it needs"),
    ],
)
def test_a_manifest_that_cannot_be_read(tmp_path: Path, lines: list[dict[str, str]], text: str) -> None:
    path = write_csv(tmp_path / "all.csv", lines)
    with pytest.raises(PipelineError, match=text):
        sources.look(InputConfig(path=str(path)), data_root=None, labels=LABELS)


def test_an_image_of_a_manifest_that_is_not_there_is_unreadable(
    images: Path, tmp_path: Path, ingest: Ingest
) -> None:
    lines = rows(images)
    (images / lines[0]["path"]).unlink()
    report = read_report(ingest(write_csv(images / "all.csv", lines), tmp_path / "examples"))
    assert report["corrupt"] == [{"file": lines[0]["path"], "reason": "No such file or directory"}]


def test_a_changed_image_of_a_manifest_changes_the_fingerprint(images: Path) -> None:
    config = InputConfig(path=str(write_csv(images / "all.csv", rows(images))))
    look = sources.look(config, data_root=None, labels=LABELS)
    assert sources.look(config, data_root=None, labels=LABELS) == look
    (images / "test/red/000.png").write_bytes(b"other")
    assert sources.look(config, data_root=None, labels=LABELS).fingerprint != look.fingerprint


def test_the_record_of_a_data_set(images: Path) -> None:
    bare = sources.look(InputConfig(), data_root=images, labels=LABELS)
    assert bare.record() == {
        "name": "images",
        "source": str(images),
        "digest": bare.fingerprint,
        "splits": {"train": 48, "val": 18, "test": 30},
    }
    described = {"schema_version": 1, "name": "colours", "source": "a camera", "digest": "d" * 64}
    (images / "dataset.json").write_text(json.dumps(described))
    record = sources.look(InputConfig(), data_root=images, labels=LABELS).record()
    assert (record["name"], record["source"], record["digest"]) == ("colours", "a camera", "d" * 64)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3-compatible store on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    yield boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    server.stop()


def test_s3(
    s3: Any, images: Path, tmp_path: Path, ingest: Ingest, expected: dict[bytes, tuple[str, int]]
) -> None:
    s3.create_bucket(Bucket="images")
    for path in images.rglob("*.png"):
        s3.upload_file(str(path), "images", f"span-7/{path.relative_to(images).as_posix()}")
    found = ingest("s3://images/span-{SPAN}", tmp_path / "folder")
    assert table(found) == expected
    assert found.span == 7
    lines = [{**line, "path": f"s3://images/span-7/{line['path']}"} for line in rows(images)]
    s3.upload_file(str(write_csv(tmp_path / "all.csv", lines)), "images", "all.csv")
    assert table(ingest("s3://images/all.csv", tmp_path / "csv")) == expected
    with pytest.raises(PipelineError, match=r"no images below s3://images/nothing"):
        sources.look(InputConfig(path="s3://images/nothing"), data_root=None, labels=LABELS)


def test_the_graph_for_google_storage_builds() -> None:
    """Its objects are opened by the same calls as S3's; no store was asked."""
    pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(["--runner=FnApiRunner"]))
    examples, findings = examples_and_findings(
        pipeline, path="gs://bucket/images", kind="folder", rules=Rules(labels=LABELS), splits=["train"]
    )
    for collection in (*examples.values(), findings):
        assert isinstance(collection, beam.PCollection)
    assert "Measure" in str(pipeline.to_runner_api())
    assert FileSystems.get_filesystem("gs://bucket/images").scheme() == "gs"
