"""Sources as items: which files they are, and what split they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet
import pytest

from isthmus.tfx_pipeline import sources
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.image_items import Item, manifest_items, record_files, split_of_file

LABELS = ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("path", "root", "split"),
    [
        ("/data/test/x-1.tfrecord", "/data/test/x-*.tfrecord", None),
        ("/data/test/x-train-1.tfrecord", "/data/test/x-*.tfrecord", "train"),
        ("/data/test-1.tfrecord", "/data/test-?.tfrecord", "test"),
        ("/mnt/eval/all.tfrecord", "/mnt/eval/all.tfrecord", None),
        ("/mnt/eval/train.tfrecord", "/mnt/eval/train.tfrecord", "train"),
        ("/mnt/eval/all.tfrecord", "/mnt/eval", None),
        ("/mnt/eval/all.tfrecord", "/mnt/eval/", None),
        ("/mnt/eval/validation/all.tfrecord", "/mnt/eval", "val"),
        ("s3://test/a/val/1.tfrecord", "s3://test/*/val/1.tfrecord", "val"),
        ("s3://test/a/1.tfrecord", "s3://test/*/1.tfrecord", None),
    ],
)
def test_the_split_is_not_what_the_source_lies_in(path: str, root: str, split: str | None) -> None:
    assert split_of_file(path, root) == split


@pytest.mark.parametrize("place", ["x-*.tfrecord", "x-1.tfrecord", ""])
def test_records_in_a_folder_called_test_are_split_by_content(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "x-1.tfrecord").touch()
    config = InputConfig(path=str(folder / place), format="tfrecord")
    assert sources.look(config, data_root=None, labels=LABELS).by_hash


def test_the_folder_itself_may_be_called_tfrecords(tmp_path: Path) -> None:
    folder = tmp_path / "my-tfrecords"
    (folder / "below").mkdir(parents=True)
    for name in ("b.tfrecord", "below/a[1].tfrecord", "notes.txt", "c.tfrecord.part"):
        (folder / name).touch()
    whole = [str(folder / name) for name in ("b.tfrecord", "below/a[1].tfrecord")]
    assert [file.path for file in record_files(str(folder), "tfrecord")] == whole
    assert [file.path for file in record_files(whole[1], "tfrecord")] == whole[1:]
    assert [file.path for file in record_files(f"{tmp_path}/*tfrecords", "tfrecord")] == []


ROWS = [
    {"path": f"{label}/{split}.png", "label": label, "split": split}
    for split in ("train", "val", "test")
    for label in LABELS
]


def items(folder: Path) -> list[Item]:
    """What ROWS is, in a manifest in this folder."""
    return [Item(row["path"], row["label"], row["split"], f"{folder}/{row['path']}", None) for row in ROWS]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["all.PARQUET", "all.csv", "all", "a[1].parquet"])
def test_parquet_of_any_name(tmp_path: Path, name: str) -> None:
    path = str(write_parquet(tmp_path / name, ROWS))
    assert list(manifest_items(path)) == list(manifest_items(path, "parquet")) == items(tmp_path)
    found = sources.look(InputConfig(path=path, format="parquet"), data_root=None, labels=LABELS)
    assert (found.kind, found.num_images) == ("parquet", {"train": 3, "val": 3, "test": 3})


def test_csv_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "all.list"
    path.write_text("path,label,split\n" + "".join(f"{','.join(row.values())}\n" for row in ROWS))
    assert list(manifest_items(str(path))) == list(manifest_items(str(path), "csv")) == items(tmp_path)


def test_a_folder_as_spark_writes_it_is_one_manifest(
    images: Path, tmp_path: Path, ingest: Callable[..., Any]
) -> None:
    """Its files together, and its folders as columns; paths start where the folder is."""
    for split in ("train", "val", "test"):
        of_split = sorted((images / split).rglob("*.png"))
        rows = [{"path": path.relative_to(images).as_posix(), "label": path.parent.name} for path in of_split]
        for part in range(2):
            target = images / "all.parquet" / f"split={split}" / f"part-0000{part}.snappy.parquet"
            write_parquet(target, rows[part::2])
            target.with_name(f".{target.name}.crc").write_bytes(b"crc")
    (images / "all.parquet" / "_SUCCESS").touch()
    examples = ingest(f"{images / 'all.parquet'}/", tmp_path / "examples")
    assert read_report(examples)["num_images"] == {"train": 48, "val": 18, "test": 30}
    assert read_report(examples)["num_corrupt"] == 0


def test_a_folder_of_parquet_in_a_store(tmp_path: Path, bucket: str) -> None:
    store = boto3.client("s3")
    for number in range(2):
        path = write_parquet(tmp_path / f"part-{number}.parquet", ROWS[number::2])
        store.upload_file(str(path), "models", f"spark/all.parquet/part-{number}.parquet")
    place = f"{bucket}/spark/all.parquet"
    found = sources.look(InputConfig(path=place), data_root=None, labels=LABELS)
    assert found.num_images == {"train": 3, "val": 3, "test": 3}
    read = sorted((item.path, item.label, item.split) for item in manifest_items(place))
    assert read == sorted((f"{bucket}/spark/{row['path']}", row["label"], row["split"]) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("all.csv", b"path,label\n\xff.png,red\n", "'utf-8' codec can't decode byte 0xff in position"),
        ("all.csv", b"path,label\n" + b"x" * 200_000 + b",red\n", "field larger than field limit"),
        ("all.parquet", b"path,label\na.png,red\n", "Parquet magic bytes not found in footer"),
        ("all.parquet", b"", "Parquet file size is 0 bytes"),
        ("all.csv", b"PAR1 and nothing of it", "Parquet magic bytes not found in footer"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PipelineError) as raised:
        sources.look(InputConfig(path=str(path)), data_root=None, labels=LABELS)
    assert str(raised.value).startswith(f"cannot read {path}: ")
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("pipeline.input.format says which where the name does not")


def test_paths_must_be_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "all.parquet", [{"path": 5, "label": "red"}])
    with pytest.raises(PipelineError, match=r"all.parquet: row 1 has the path 5, which is no text"):
        list(manifest_items(str(path)))


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=f"no manifest at {tmp_path}/none.csv"):
        list(manifest_items(f"{tmp_path}/none.csv"))
