"""Fashion-MNIST from Debian's files (small ones of the same format), and what is said when there are none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isthmus.training import sources
from isthmus.training.config import DataConfig
from isthmus.training.data import prepare
from isthmus.training.errors import TrainingError


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def debian_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for part, num in (("train", 200), ("t10k", 50)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", noise.integers(0, 256, (num, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(num) % 10)
    monkeypatch.setattr(sources, "FASHION_MNIST_FOLDER", folder)
    return folder


def test_the_official_test_split_is_kept_and_val_is_carved_out_of_train(
    debian_files: Path, tmp_path: Path
) -> None:
    prepared = prepare(DataConfig(source="fashion_mnist"), home=tmp_path / "home")
    assert prepared.splits == {"train": 180, "val": 20, "test": 50}
    assert "ankle-boot" in prepared.classes
    labels = sources.read_idx(debian_files / "t10k-labels-idx1-ubyte.gz")
    images = sources.read_idx(debian_files / "t10k-images-idx3-ubyte.gz")
    for path, label in prepared.images("test"):
        number = int(path.stem) - 200
        assert sources.FASHION_MNIST_CLASSES[labels[number]] == prepared.classes[label]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[number])


def test_a_file_cut_short_is_named(debian_files: Path, tmp_path: Path) -> None:
    path = debian_files / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(TrainingError, match=r"train-images-idx3-ubyte.gz is cut short: \d+ of \d+ values"):
        prepare(DataConfig(source="fashion_mnist"), home=tmp_path / "home")
    path.write_bytes(b"garbage")
    with pytest.raises(TrainingError, match=r"cannot read .*train-images-idx3-ubyte.gz"):
        prepare(DataConfig(source="fashion_mnist"), home=tmp_path / "home")
    path.write_bytes(gzip.compress(b"garbage"))
    with pytest.raises(TrainingError, match="is not an IDX file of bytes"):
        prepare(DataConfig(source="fashion_mnist"), home=tmp_path / "home")


def test_without_package_and_download_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(sources, "FASHION_MNIST_FOLDER", tmp_path / "not-installed")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(TrainingError) as caught:
        prepare(DataConfig(source="fashion_mnist"), home=tmp_path / "home")
    text = str(caught.value)
    assert "\n" not in text
    assert "apt install dataset-fashion-mnist" in text
    assert "torchvision's download failed (" in text
