"""Every way in which a folder can be wrong is one line that names the place; else it is split by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from isthmus.export.torch_half.images import IMAGE_SUFFIXES as REFERENCE_SUFFIXES
from isthmus.lineage.splits import position_of, split_of
from isthmus.tfx_pipeline.image_folder import IMAGE_SUFFIXES
from isthmus.training.config import DataConfig
from isthmus.training.errors import TrainingError
from isthmus.training.imagefolder import Plan, link, list_folder, plan
from isthmus.training.images import SUFFIXES


def planned(root: Path, **options: object) -> Plan:
    return plan(list_folder(root), DataConfig(root=root, **options))  # type: ignore[arg-type]


def counts(result: Plan) -> dict[str, dict[str, int]]:
    return {split: {name: len(files) for name, files in by.items()} for split, by in result.files.items()}


def refusal(root: Path | None, **options: object) -> str:
    with pytest.raises(TrainingError) as caught:
        plan(list_folder(root), DataConfig(root=root, **options))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_parity_and_evaluation_are_measured_on_the_formats_that_training_takes() -> None:
    assert set(IMAGE_SUFFIXES) == REFERENCE_SUFFIXES == SUFFIXES


def test_a_root_without_splits_is_split_and_no_class_is_missing_anywhere(images: Path) -> None:
    result = planned(images)
    assert result.classes == ("blue", "green", "red")
    for split in ("train", "val", "test"):
        assert set(result.files[split]) == {"blue", "green", "red"}
        assert all(result.files[split].values())
    files = [path for by_class in result.files.values() for found in by_class.values() for path in found]
    assert len(files) == len(set(files)) == 60


def test_the_split_is_the_same_every_time_and_another_with_another_seed(images: Path) -> None:
    assert planned(images).files == planned(images).files
    assert planned(images, split_seed=1).files != planned(images).files


def test_an_image_added_later_moves_no_other(images: Path) -> None:
    before = planned(images)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(images / "red" / "new.png")
    after = planned(images)
    for split, by_class in before.files.items():
        for name, files in by_class.items():
            assert set(files) <= set(after.files[split][name])


def test_copies_of_one_image_stay_in_one_split(images: Path) -> None:
    for path in list((images / "red").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    for by_class in planned(images).files.values():
        names = {path.name.removeprefix("copy-") for path in by_class["red"]}
        assert len(by_class["red"]) == 2 * len(names)


def test_the_position_of_a_content_is_uniform_and_split_by_the_fractions() -> None:
    names = [f"{number:064x}" for number in range(4000)]
    positions = [position_of(name, seed=0) for name in names]
    assert 0 <= min(positions) < 0.01
    assert 0.99 < max(positions) < 1
    splits = [split_of(name, seed=0, val_fraction=0.1, test_fraction=0.2) for name in names]
    assert abs(splits.count("test") / 4000 - 0.2) < 0.02
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02


def test_given_splits_are_kept(write_images: object, tmp_path: Path) -> None:
    root = tmp_path / "whole"
    for split, num in (("train", 4), ("validation", 2), ("test", 3)):
        for colour in ("red", "green"):
            write_images(f"whole/{split}/{colour}", num, colour)  # type: ignore[operator]
    assert counts(planned(root)) == {
        "train": {"green": 4, "red": 4},
        "val": {"green": 2, "red": 2},
        "test": {"green": 3, "red": 3},
    }


def test_a_split_that_is_missing_is_carved_out_of_train_alone(write_images: object, tmp_path: Path) -> None:
    for colour in ("red", "green"):
        write_images(f"whole/train/{colour}", 20, colour)  # type: ignore[operator]
        write_images(f"whole/val/{colour}", 5, colour)  # type: ignore[operator]
    found = counts(planned(tmp_path / "whole"))
    assert found["val"] == {"green": 5, "red": 5}
    assert all(found["train"][name] + found["test"][name] == 20 for name in ("red", "green"))
    assert all(found["test"].values())


def test_max_per_class_keeps_a_few(images: Path) -> None:
    found = counts(planned(images, max_per_class=2))
    assert found["train"] == {"blue": 2, "green": 2, "red": 2}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "data.root is missing"),
        ("nowhere", "does not exist; give the folder that holds your images"),
        ("file", "is a file; give the folder"),
        ("empty", "is empty: it needs one folder per class"),
    ],
)
def test_a_root_that_is_none_is_said(given: str | None, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert text in refusal(None if given is None else tmp_path / given)


def test_a_class_folder_without_images_is_named(images: Path) -> None:
    (images / "white").mkdir()
    (images / "white" / "notes.txt").write_text("no image")
    text = refusal(images)
    assert text.startswith(f"a class folder without images: {images / 'white'}; add images (.bmp")


def test_images_beside_the_class_folders_are_named(images: Path) -> None:
    Image.new("RGB", (8, 8)).save(images / "stray.png")
    assert "1 images lie directly in" in refusal(images)
    assert "images/<class>/stray.png" in refusal(images)


def test_one_class_alone_is_refused(write_images: object, tmp_path: Path) -> None:
    write_images("single/red", 5)  # type: ignore[operator]
    assert "has one class only (red)" in refusal(tmp_path / "single")


def test_a_class_too_small_to_split_is_named(images: Path, write_images: object) -> None:
    write_images("images/white", 2)  # type: ignore[operator]
    expected = "class white has 2 different image(s); carving val and test out of train needs at least 3"
    assert refusal(images) == expected


def test_three_images_of_a_class_are_enough(images: Path, write_images: object) -> None:
    write_images("images/white", 3)  # type: ignore[operator]
    assert [found["white"] for found in counts(planned(images)).values()] == [1, 1, 1]


def test_a_class_missing_from_validation_is_named(write_images: object, tmp_path: Path) -> None:
    for folder in ("train/red", "train/green", "val/red", "test/red", "test/green"):
        write_images(f"whole/{folder}", 3, folder.split("/")[1])  # type: ignore[operator]
    text = refusal(tmp_path / "whole")
    assert text.startswith("the val split has no image of class green (it has 1 of 2 classes)")


def test_a_class_that_train_has_not_is_named(write_images: object, tmp_path: Path) -> None:
    for folder in ("train/red", "train/green", "val/red", "val/green", "val/blue"):
        write_images(f"whole/{folder}", 3, folder.split("/")[1])  # type: ignore[operator]
    assert "val has classes that train has not: blue" in refusal(tmp_path / "whole")


def test_splits_without_train_are_refused(write_images: object, tmp_path: Path) -> None:
    write_images("whole/val/red", 3)  # type: ignore[operator]
    assert "has val/ but no train/" in refusal(tmp_path / "whole")


def test_corrupt_images_are_named_and_counted(images: Path) -> None:
    whole = (images / "red" / "003.png").read_bytes()
    (images / "red" / "003.png").write_bytes(whole[: len(whole) // 2])
    (images / "blue" / "004.png").write_bytes(b"this is no image")
    text = refusal(images)
    assert text.startswith("2 of 60 images cannot be decoded: ")
    assert f"{images / 'red' / '003.png'} (" in text
    assert "cannot identify image file" in text
    assert text.endswith("set data.on_corrupt: quarantine to train without them")


def test_corrupt_images_can_be_left_out(images: Path) -> None:
    (images / "blue" / "004.png").write_bytes(b"this is no image")
    result = planned(images, on_corrupt="quarantine")
    assert [entry["path"] for entry in result.quarantined] == [str(images / "blue" / "004.png")]
    assert sum(found["blue"] for found in counts(result).values()) == 19


def test_hidden_files_and_folders_do_not_count(images: Path) -> None:
    (images / ".cache").mkdir()
    (images / "red" / ".hidden.png").write_bytes(b"no image")
    assert sum(found["red"] for found in counts(planned(images)).values()) == 20


def test_a_link_costs_no_space_and_survives_the_original(images: Path, tmp_path: Path) -> None:
    source = images / "red" / "000.png"
    content = source.read_bytes()
    link(source, tmp_path / "linked.png")
    assert os.stat(tmp_path / "linked.png").st_ino == os.stat(source).st_ino
    source.unlink()
    assert (tmp_path / "linked.png").read_bytes() == content
