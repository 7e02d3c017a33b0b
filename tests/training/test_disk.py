"""A full disk is one line, and what was complete before it stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.task import ClassificationTask

from isthmus.training.disk import no_space_is_one_line
from isthmus.training.errors import TrainingError
from isthmus.training.unfinished import Progress, Unfinished

ONE_LINE = r"^no space left under /.*/home \(\d+ MiB free\); free some, or give another --home"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=ONE_LINE),
        no_space_is_one_line(tmp_path / "home"),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)


@pytest.mark.parametrize(
    "said",
    [
        "I/O error: No space left on device (os error 28)",
        "(sqlite3.OperationalError) database or disk is full",
    ],
)
def test_libraries_that_say_it_without_an_errno_are_understood(said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=ONE_LINE), no_space_is_one_line(tmp_path / "home"):
        raise RuntimeError(said)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), no_space_is_one_line(tmp_path):
        (tmp_path / "missing").read_text()


def test_the_last_complete_state_survives_a_full_disk(tmp_path: Path) -> None:
    task = ClassificationTask(torch.nn.Linear(100, 100), verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    unfinished = Unfinished(folder=tmp_path / "home")
    unfinished.save(task, optimizer, Progress(epochs_done=1))
    (unfinished.folder / "state.new").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=ONE_LINE), no_space_is_one_line(tmp_path / "home"):
        unfinished.save(task, optimizer, Progress(epochs_done=2))
    assert [path.name for path in unfinished.folder.iterdir()] == ["state.pt"]
    restored = unfinished.restore(task, optimizer)
    assert restored == Progress(epochs_done=1)
