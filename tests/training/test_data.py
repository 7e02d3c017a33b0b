"""What preparation leaves on disk, that it is the same every time, and that a broken-off one is redone."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from isthmus.lineage.files import tree_digest
from isthmus.training.config import DataConfig
from isthmus.training.data import dataset_name, find, load, prepare
from isthmus.training.errors import TrainingError

DIGITS_DIGEST = "43f3d856f293f1a48c963191a2ca18b893e7d8b99c920e85cbfa41014e960372"


@pytest.fixture(scope="module")
def digits_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    prepare(DataConfig(source="digits"), home=home)
    return home


def test_digits_become_an_image_folder_of_the_real_pixels(digits_home: Path) -> None:
    digits = find(DataConfig(source="digits"), home=digits_home)
    assert digits is not None
    assert digits.root == digits_home / "data" / "digits"
    assert digits.classes == tuple("0123456789")
    assert digits.splits == {"train": 1257, "val": 180, "test": 360}
    real = load_digits()
    for split in digits.splits:
        listed = digits.images(split)
        assert len(listed) == digits.splits[split]
        for path, label in listed[::50]:
            number = int(path.stem)
            assert real.target[number] == label == int(path.parent.name)
            pixels = np.asarray(Image.open(path), dtype=np.float64)
            np.testing.assert_array_equal(pixels, np.rint(real.images[number] * 255 / 16))


def test_the_digest_is_the_tree_digest_of_the_splits_and_always_the_same(digits_home: Path) -> None:
    root = digits_home / "data" / "digits"
    record = json.loads((root / "dataset.json").read_text())
    assert record["digest"] == tree_digest(root, exclude={"dataset.json"}) == DIGITS_DIGEST
    assert record["schema_version"] == 1
    assert record["splits"]["val"] == {"num_images": 180}


def test_digits_are_split_with_equal_class_shares(digits_home: Path) -> None:
    labels = [label for _, label in load(digits_home / "data" / "digits").images("val")]
    assert set(np.bincount(labels)) <= {17, 18, 19}


def test_a_second_preparation_does_nothing(digits_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.stat(digits_home / "data" / "digits").st_mtime_ns
    with caplog.at_level(logging.INFO, logger="isthmus"):
        assert prepare(DataConfig(source="digits"), home=digits_home).reused
    assert os.stat(digits_home / "data" / "digits").st_mtime_ns == before
    assert "data digits: up to date, 1257 train, 180 val, 360 test images of 10 classes" in caplog.text


def test_neither_torch_nor_timm_is_imported(tmp_path: Path, images: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from isthmus.training.config import DataConfig
        from isthmus.training.data import prepare
        prepare(DataConfig(root=Path({str(images)!r})), home=Path({str(tmp_path / "home")!r}))
        prepare(DataConfig(source="digits", max_per_class=1), home=Path({str(tmp_path / "home")!r}))
        assert not {{"torch", "torchvision", "timm", "mlflow"}} & set(sys.modules), sorted(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_a_folder_is_linked_into_the_home_and_digested(images: Path, tmp_path: Path) -> None:
    data = DataConfig(root=images)
    prepared = prepare(data, home=tmp_path / "home")
    assert prepared.name == "images"
    assert sum(prepared.splits.values()) == 60
    path, label = prepared.images("train")[0]
    assert path.read_bytes() == (images / prepared.classes[label] / path.name).read_bytes()
    again = prepare(data, home=tmp_path / "other")
    assert again.digest == prepared.digest


def test_a_changed_folder_is_prepared_again(images: Path, tmp_path: Path) -> None:
    data = DataConfig(root=images)
    first = prepare(data, home=tmp_path / "home")
    assert prepare(data, home=tmp_path / "home").reused
    Image.new("RGB", (16, 16)).save(images / "red" / "more.png")
    second = prepare(data, home=tmp_path / "home")
    assert not second.reused
    assert second.digest != first.digest
    assert sum(second.splits.values()) == 61
    assert [path.name for path in (tmp_path / "home" / "data").iterdir() if path.is_dir()] == ["images"]


def test_files_of_folders_below_a_class_keep_their_names_apart(images: Path, tmp_path: Path) -> None:
    (images / "red" / "deep").mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(images / "red" / "deep" / "000.png")
    prepared = prepare(DataConfig(root=images), home=tmp_path / "home")
    names = [path.name for split in prepared.splits for path, _ in prepared.images(split)]
    assert names.count("deep__000.png") == 1
    assert sum(prepared.splits.values()) == 61


def test_quarantined_images_are_listed(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "blue" / "004.png").write_bytes(b"this is no image")
    prepared = prepare(DataConfig(root=images, on_corrupt="quarantine"), home=tmp_path / "home")
    assert prepared.num_quarantined == 1
    record = json.loads((prepared.root / "dataset.json").read_text())
    assert record["quarantined"][0]["path"] == str(images / "blue" / "004.png")
    assert "1 images do not decode and are left out" in caplog.text


def test_a_refused_preparation_leaves_nothing(images: Path, tmp_path: Path) -> None:
    (images / "blue" / "004.png").write_bytes(b"this is no image")
    with pytest.raises(TrainingError, match="1 of 60 images cannot be decoded"):
        prepare(DataConfig(root=images), home=tmp_path / "home")
    assert [path for path in (tmp_path / "home" / "data").iterdir() if path.is_dir()] == []


def test_a_data_set_without_its_marker_or_with_a_lost_file_is_redone(tmp_path: Path) -> None:
    data = DataConfig(source="digits", max_per_class=2)
    first = prepare(data, home=tmp_path)
    (first.root / "dataset.json").unlink()
    with pytest.raises(TrainingError, match="is not a complete data set"):
        load(first.root)
    assert not prepare(data, home=tmp_path).reused
    first.images("train")[0][0].unlink()
    second = prepare(data, home=tmp_path)
    assert not second.reused
    assert second.digest == first.digest


def test_a_killed_preparation_is_redone(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from isthmus.training.config import DataConfig
        from isthmus.training.data import prepare
        prepare(DataConfig(source="digits"), home=Path({str(tmp_path)!r}))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/.digits.new/.staging-*/train/*/*.png")):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert find(DataConfig(source="digits"), home=tmp_path) is None
    assert prepare(DataConfig(source="digits"), home=tmp_path).digest == DIGITS_DIGEST
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == ["digits"]


def test_two_preparations_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data" / ".digits.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match=r"another process is writing .*digits now; wait for it"):
            prepare(DataConfig(source="digits"), home=tmp_path)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (DataConfig(source="digits", val_fraction=0.6, test_fraction=0.5), "together below 1"),
        (DataConfig(source="digits", max_per_class=0), "data.max_per_class 0 must be at least 1"),
        (
            DataConfig(source="digits", root=Path("x")),
            "data.root x is for imagefolder and timm, not for digits",
        ),
        (DataConfig(source="digits", name="../x"), "data.name '../x' is not a folder name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(data: DataConfig, text: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        prepare(data, home=tmp_path)
    assert text in str(caught.value)


def test_a_folder_name_is_made_from_the_root() -> None:
    assert dataset_name(DataConfig(root=Path("/data/My flowers!"))) == "My-flowers"
    assert dataset_name(DataConfig(source="digits")) == "digits"
