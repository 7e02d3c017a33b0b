"""Data sets of every form that timm reads become image files once; what cannot be read is one line."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isthmus.training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from isthmus.training.data import prepare
from isthmus.training.errors import TrainingError
from isthmus.training.train import train

FRACTIONS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_hfds_keeps_the_files_as_they_are(images: Path, tmp_path: Path) -> None:
    data = DataConfig(
        source="timm", reader=f"hfds/{images}", root=tmp_path / "cache", name="hub", **FRACTIONS
    )
    prepared = prepare(data, home=tmp_path / "home")
    assert prepared.classes == ("blue", "green", "red")
    assert sum(prepared.splits.values()) == 60
    originals = {path.read_bytes() for path in images.rglob("*.png")}
    assert {path.read_bytes() for split in prepared.splits for path, _ in prepared.images(split)} == originals
    assert prepare(data, home=tmp_path / "home").reused


def test_wds_shards_with_their_class_names(images: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(path.name for path in images.iterdir())
    with tarfile.open(shards / "pets-train-0000.tar", "w") as tar:
        for label, name in enumerate(names):
            for path in sorted((images / name).iterdir()):
                for suffix, content in (("png", path.read_bytes()), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{name}{path.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    split = {"name": "train", "num_samples": 60, "filenames": ["pets-train-0000.tar"], "shard_lengths": [60]}
    (shards / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    data = DataConfig(source="timm", reader="wds/", root=shards, name="shards", **FRACTIONS)
    prepared = prepare(data, home=tmp_path / "home")
    # The shards name no classes: they are counted.
    assert prepared.classes == ("0000", "0001", "0002")
    first = {
        pixels(path).tobytes()
        for split in prepared.splits
        for path, label in prepared.images(split)
        if label == 0
    }
    assert first == {pixels(path).tobytes() for path in (images / "blue").iterdir()}


def test_torchs_own_data_sets(tmp_path: Path) -> None:
    raw = tmp_path / "torch" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 40)):
        grey, labels = (
            noise.integers(0, 256, (count, 28, 28), np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        for name, magic, array in (("images-idx3", 2051, grey), ("labels-idx1", 2049, labels)):
            header = np.array([magic, *array.shape], ">i4").tobytes()
            (raw / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    data = DataConfig(
        source="timm",
        reader="torch/fashion_mnist",
        root=tmp_path / "torch",
        name="clothes",
        test_split="validation",
        **FRACTIONS | {"val_fraction": 0.3},
    )
    prepared = prepare(data, home=tmp_path / "home")
    assert "Ankle boot" in prepared.classes
    assert "T-shirt_top" in prepared.classes
    assert prepared.splits["test"] == 40
    assert prepared.splits["train"] + prepared.splits["val"] == 60


TFDS = """
    import sys
    import numpy as np
    import tensorflow_datasets as tfds

    class Squares(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["dark", "light"])
            features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(10, 100)}

        def _generate_examples(self, count, start=0):
            for number in range(start, start + count):
                value = 40 + number if number % 2 == 0 else 200 - number
                yield number, {"image": np.full((8, 8, 3), value, np.uint8), "label": number % 2}

    Squares(data_dir=sys.argv[1]).download_and_prepare()
"""


def test_tfds_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(textwrap.dedent(TFDS))
    done = subprocess.run(
        [sys.executable, tmp_path / "squares.py", tmp_path / "tfds"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = DataConfig(
        source="timm",
        reader="tfds/squares",
        root=tmp_path / "tfds",
        name="squares",
        test_split="test",
        **FRACTIONS,
    )
    prepared = prepare(data, home=tmp_path / "home")
    assert prepared.classes == ("dark", "light")
    assert prepared.splits["test"] == 10
    values = {(int(pixels(path)[0, 0, 0]), label) for path, label in prepared.images("test")}
    assert values == {(40 + n, 0) if n % 2 == 0 else (200 - n, 1) for n in range(100, 110)}
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reader": "imagenet"}, r"data.reader 'imagenet' is no reader; allowed: torch/NAME, hfds/NAME"),
        ({"reader": None}, r"data.reader and data.source: timm belong together"),
        (
            {"reader": "torch/no_such"},
            r"data.reader torch/no_such cannot read .*Unknown torchvision dataset no_such",
        ),
        ({"reader": "tfds/no_such_set"}, r"data.reader tfds/no_such_set cannot read .*no_such_set"),
    ],
)
def test_what_cannot_be_read_is_one_line(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(TrainingError, match=text) as caught:
        prepare(DataConfig(source="timm", root=tmp_path, **changes), home=home)
    assert "\n" not in str(caught.value)
    assert not list(home.rglob("labels.json"))


def multi_label(images: Path, root: Path) -> Path:
    """60 squares; the classes are their colour, and `even` of every second image; some have none."""
    lines = ["path,labels"]
    for path in sorted(images.rglob("*.png")):
        target = root / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
        number = int(path.stem)
        names = [] if path.parent.name == "green" else [path.parent.name]
        lines.append(f"{target.name},{';'.join(names + (['even'] if number % 2 == 0 else []))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_several_classes_an_image(images: Path, tmp_path: Path) -> None:
    root = multi_label(images, tmp_path / "several")
    result = train(
        name="several",
        data=DataConfig(root=root, multi_label=True, **FRACTIONS),
        model=ModelConfig(name="test_resnet", input_size=(3, 32, 32)),
        train=TrainConfig(
            epochs=2, batch_size=8, workers=0, threads=1, loss="asl", augment=AugmentConfig(mixup=0.2)
        ),
        home=tmp_path / "home",
        recipe={"name": "several"},
    )
    assert 0 < result.metrics["test_map"] <= 1
    assert 0 < result.metrics["val_map"] <= 1
    from isthmus.training import checkpoint

    record = checkpoint.read(result.checkpoint)
    assert record is not None
    assert record["model"]["head"] == "multi_label"
    assert record["model"]["labels"] == ["blue", "even", "red"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"data.multi_label needs .*labels.csv with the columns path and labels"),
        ("file,label\na.png,x\n", r"labels.csv needs the columns path and labels"),
        ("path,labels\nmissing.png,x\n", r"names 1 files that are not there: .*missing.png"),
        ("path,labels,split\na.png,x,later\n", r"line 2: split 'later' is unknown"),
    ],
)
def test_a_list_of_labels_that_is_wrong_is_one_line(content: str | None, text: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(TrainingError, match=text):
        prepare(DataConfig(root=tmp_path, multi_label=True), home=tmp_path / "home")
