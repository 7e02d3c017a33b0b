"""Sources as items: which files they are, and what split they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.tfx_pipeline import sources
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.image_items import record_files, split_of_file

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
