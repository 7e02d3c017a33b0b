"""Models trained elsewhere become checkpoints: once, complete, and saying what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus.export import checkpoint as checkpoints
from isthmus.export.elsewhere import Origin, adopt, reference_images
from isthmus.export.errors import ExportError
from isthmus.export.photographs import NUM_WINDOWS, SOURCE, folder_of_windows


def take(origin: Origin, home: Path, **changes: Any) -> Path:
    return adopt(origin, **{"name": "toy", "home": home, "timeout_s": 300.0, **changes})


def test_a_missing_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--weights .*nowhere\.pth is not a file"):
        take(Origin(architecture="resnet10t", weights=tmp_path / "nowhere.pth"), tmp_path)
    with pytest.raises(ExportError, match=r"--images .*nowhere is not a folder"):
        reference_images(tmp_path / "nowhere", home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_windows_of_photographs_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (folder_of_windows(tmp_path / name) for name in ("a", "b"))
    files = sorted(path.name for path in first.glob("*.png"))
    assert len(files) == NUM_WINDOWS
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert folder_of_windows(tmp_path / "a") == first
    assert reference_images(None, home=tmp_path / "a").source == SOURCE


@pytest.mark.slow
def test_weights_of_a_timm_model_become_a_checkpoint_once(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("north\neast\nsouth\nwest\n")
    origin = Origin(
        architecture="resnet10t",
        weights=checkpoint / "model.safetensors",
        labels=tmp_path / "names.txt",
        preprocessing={"input_size": (3, 32, 32), "crop_pct": 1.0},
    )
    made = take(origin, tmp_path)
    adopted = checkpoints.read(made)
    adopted.check_weights()
    assert adopted.model["labels"] == ["north", "east", "south", "west"]
    assert (adopted.preprocessing["input_size"], adopted.preprocessing["crop_pct"]) == ([3, 32, 32], 1.0)
    assert adopted.origin["kind"] == "timm"
    assert adopted.record["dataset"]["digest"] is None
    assert take(origin, tmp_path) == made
    with pytest.raises(ExportError, match=r"names\.txt has 4 names.*the model has 1000 classes"):
        take(
            Origin(architecture="resnet10t", onnx=None, weights=_thousand(tmp_path), labels=origin.labels),
            tmp_path,
        )


def _thousand(folder: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet10t").state_dict(), folder / "thousand.safetensors")
    return folder / "thousand.safetensors"
