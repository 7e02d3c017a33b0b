"""Which real images parity is measured on, and that they are exactly what timm evaluates."""

from __future__ import annotations

import io
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isthmus.export import checkpoint as checkpoints
from isthmus.export.errors import ExportError
from isthmus.export.torch_half import images as evaluation_images

LABELS = ["blue", "green", "red", "white"]


def test_every_class_is_there_and_the_choice_is_stable(data_root: Path) -> None:
    chosen = evaluation_images.choose(data_root, split="test", labels=LABELS, count=16)
    assert Counter(label for _, label in chosen) == {0: 4, 1: 4, 2: 4, 3: 4}
    assert chosen == evaluation_images.choose(data_root, split="test", labels=LABELS, count=16)
    assert all(path.parent.name == LABELS[label] for path, label in chosen)
    assert len(set(chosen)) == 16


def test_more_than_there_are_means_all(data_root: Path) -> None:
    assert len(evaluation_images.choose(data_root, split="test", labels=LABELS, count=1000)) == 24


def test_classes_of_unequal_size_share_what_is_left(tmp_path: Path) -> None:
    for label, count in (("a", 1), ("b", 2), ("c", 40)):
        (tmp_path / "test" / label).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "test" / label / f"{i:02}.png").touch()
    chosen = evaluation_images.choose(tmp_path, split="test", labels=["a", "b", "c"], count=20)
    assert Counter(label for _, label in chosen) == {0: 1, 1: 2, 2: 17}
    of_c = [int(path.stem) for path, label in chosen if label == 2]
    assert of_c[0] < 3
    assert of_c[-1] > 36


def test_more_classes_than_images_are_spread(tmp_path: Path) -> None:
    labels = [f"{i:03}" for i in range(100)]
    for label in labels:
        (tmp_path / "test" / label).mkdir(parents=True)
        (tmp_path / "test" / label / "0.png").touch()
    chosen = evaluation_images.choose(tmp_path, split="test", labels=labels, count=20)
    assert [label for _, label in chosen] == list(range(2, 100, 5))


def test_an_unknown_class_is_named(tmp_path: Path, data_root: Path) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    (tmp_path / "data" / "test" / "red").rename(tmp_path / "data" / "test" / "purple")
    with pytest.raises(
        ExportError, match=r"class 'purple' is not one of the 4 that the model was trained on"
    ):
        evaluation_images.choose(tmp_path / "data", split="test", labels=LABELS, count=16)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "0.png").touch()
    with pytest.raises(ExportError, match=r"holds 1 images; parity needs at least 16 real ones"):
        evaluation_images.choose(tmp_path, split="test", labels=LABELS, count=64)


def test_a_missing_split_names_those_that_are_there(data_root: Path) -> None:
    with pytest.raises(ExportError, match=r"validation is not a folder; .* holds \['test'\]"):
        evaluation_images.choose(data_root, split="validation", labels=LABELS, count=64)


# timm's ImageDataset leaves the files that it opens to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_tensors_are_those_of_timms_own_loader(data_root: Path, checkpoint: Path) -> None:
    from timm.data import ImageDataset, create_transform

    record = checkpoints.read(checkpoint)
    chosen = evaluation_images.choose(data_root, split="test", labels=LABELS, count=64)
    taken = evaluation_images.preprocess(chosen, data_root=data_root, preprocessing=record.preprocessing)
    dataset = ImageDataset(str(data_root / "test"), class_map={name: i for i, name in enumerate(LABELS)})
    dataset.transform = create_transform(**record.preprocessing, is_training=False)
    expected = {name: dataset[i] for i, name in enumerate(dataset.filenames())}
    assert len(expected) == len(taken.paths) == 24
    for i, path in enumerate(taken.paths):
        tensor, label = expected[path.removeprefix("test/")]
        np.testing.assert_array_equal(taken.images[i], tensor.numpy().transpose(1, 2, 0))
        assert taken.labels[i] == label


def test_pixels_are_the_images_before_normalisation(data_root: Path, checkpoint: Path) -> None:
    preprocessing = checkpoints.read(checkpoint).preprocessing
    chosen = evaluation_images.choose(data_root, split="test", labels=LABELS, count=16)
    taken = evaluation_images.preprocess(chosen, data_root=data_root, preprocessing=preprocessing)
    assert taken.pixels.dtype == np.uint8
    assert taken.images.dtype == np.float32
    assert taken.pixels.shape == taken.images.shape == (16, 32, 32, 3)
    again = (taken.pixels / 255.0 - np.array(preprocessing["mean"])) / np.array(preprocessing["std"])
    np.testing.assert_allclose(taken.images, again, atol=1e-6)


def test_a_file_that_does_not_decode_is_passed_over_and_named(
    tmp_path: Path, data_root: Path, checkpoint: Path
) -> None:
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    broken = root / "test" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    chosen = evaluation_images.choose(root, split="test", labels=LABELS, count=64)
    preprocessing = checkpoints.read(checkpoint).preprocessing
    taken = evaluation_images.preprocess(chosen, data_root=root, preprocessing=preprocessing)
    assert taken.unreadable == ("test/red/0.png",)
    assert len(taken.paths) == 23


def test_whatever_pillow_raises_on_a_damaged_file_it_is_passed_over(
    tmp_path: Path, data_root: Path, checkpoint: Path
) -> None:
    """Pillow goes by the content: a QOI that breaks off is an IndexError, under any suffix."""
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    damaged = root / "test" / "red" / "0.png"
    damaged.write_bytes(b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0) + b"\xfe\x01\x02\x03")
    with pytest.raises(IndexError):
        Image.open(io.BytesIO(damaged.read_bytes())).convert("RGB")
    chosen = evaluation_images.choose(root, split="test", labels=LABELS, count=64)
    preprocessing = checkpoints.read(checkpoint).preprocessing
    taken = evaluation_images.preprocess(chosen, data_root=root, preprocessing=preprocessing)
    assert taken.unreadable == ("test/red/0.png",)


def test_a_transform_that_timm_does_not_know_is_one_clear_line(data_root: Path, checkpoint: Path) -> None:
    preprocessing = {**checkpoints.read(checkpoint).preprocessing, "interpolation": "cubist"}
    chosen = evaluation_images.choose(data_root, split="test", labels=LABELS, count=16)
    with pytest.raises(ExportError, match="timm cannot build the evaluation transform"):
        evaluation_images.preprocess(chosen, data_root=data_root, preprocessing=preprocessing)
