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
    unfinished.save(task, optimizer, None, Progress(epochs_done=1))
    (unfinished.folder / "state.new").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=ONE_LINE), no_space_is_one_line(tmp_path / "home"):
        unfinished.save(task, optimizer, None, Progress(epochs_done=2))
    assert sorted(path.name for path in unfinished.folder.iterdir()) == [
        "state-00001-0000000.pt",
        "state-00001-0000000.sha256",
    ]
    read = unfinished.read()
    assert read is not None
    assert read[0] == Progress(epochs_done=1)


def test_the_last_states_are_kept_and_a_torn_one_is_recognised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = ClassificationTask(torch.nn.Linear(100, 100), verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    unfinished = Unfinished(folder=tmp_path / "home", keep=2)
    for epoch in (1, 2, 3):
        unfinished.save(task, optimizer, None, Progress(epochs_done=epoch))
    newest, before = unfinished.states()
    content = bytearray(newest.read_bytes())
    # One flipped bit in a weight: torch itself would load it.
    content[content.index(task.trainable_module.bias.detach().numpy().tobytes())] ^= 1
    newest.write_bytes(content)
    read = unfinished.read()
    assert read is not None
    assert read[0].epochs_done == 2
    assert f"cannot read {newest} (its bytes are not the ones that were written)" in caplog.text
    before.write_bytes(b"")
    assert unfinished.read() is None
