"""Reading a checkpoint's record: a finished one opens, anything else is refused in one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isthmus.export import checkpoint as checkpoints
from isthmus.export.errors import ExportError

Change = Callable[[dict[str, Any]], object]


def test_a_finished_checkpoint_opens_through_a_link(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(checkpoint)
    found = checkpoints.read(tmp_path / "latest")
    assert found.path == checkpoint.resolve()
    assert found.model["name"] == "resnet10t"
    found.check_weights()


def test_no_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no checkpoint at .*; run `isthmus train` first"):
        checkpoints.read(tmp_path / "nothing")


def test_an_unfinished_training_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ExportError, match=r"holds no checkpoint\.json: an unfinished training"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda record: record.update(schema_version=2), "has schema version 2; this isthmus reads 1"),
        (lambda record: record.pop("dataset"), "lacks dataset"),
        (lambda record: record["model"].pop("labels"), r"lacks model\.labels"),
        (lambda record: record.update(preprocessing=None), r"lacks preprocessing\.input_size"),
        (lambda record: record["model"].update(head="detector"), "known are single_label and multi_label"),
        (lambda record: record["model"].update(num_classes=9), "9 classes but 4 different labels"),
        (
            lambda record: record["preprocessing"].update(input_size=[1, 32, 32]),
            "the bridge carries RGB models",
        ),
    ],
)
def test_a_wrong_record_is_named(checkpoint: Path, tmp_path: Path, change: Change, text: str) -> None:
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    change(record)
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ExportError, match=text):
        checkpoints.read(tmp_path)


def test_broken_json_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"schema')
    with pytest.raises(ExportError, match=r"checkpoint\.json cannot be read"):
        checkpoints.read(tmp_path)
