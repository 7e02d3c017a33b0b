"""The pictures show what the predictions say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from isthmus.training import pictures
from isthmus.training.pictures import MOST_CLASSES, Predictions

CLASSES = ("cat", "dog", "owl")


def predictions() -> Predictions:
    """Two right, two dogs taken for owls (0.9 and 0.6)."""
    rows = [[0.8, 0.1, 0.1], [0.1, 0.0, 0.9], [0.2, 0.2, 0.6], [0.0, 0.1, 0.9]]
    return Predictions(
        numbers=np.arange(4), labels=np.array([0, 1, 1, 2]), probabilities=np.array(rows, np.float32)
    )


def test_the_matrix_counts_true_by_predicted() -> None:
    assert predictions().matrix().tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 1]]
    figure = pictures.confusion_matrix(predictions(), CLASSES)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASSES)
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "2"]
    assert axes.get_title() == "4 images, 50.00% right"


def test_of_many_classes_those_that_are_confused_most_are_shown() -> None:
    many = MOST_CLASSES + 20
    labels = np.arange(many)
    answers = np.where(labels >= many - MOST_CLASSES, (labels + 1) % many, labels)
    figure = pictures.confusion_matrix(
        Predictions(numbers=labels, labels=labels, probabilities=np.eye(many, dtype=np.float32)[answers]),
        [f"class {index}" for index in range(many)],
    )
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(shown) == MOST_CLASSES
    assert f"{MOST_CLASSES} of {many} classes" in figure.axes[0].get_title()


def test_the_most_certain_mistakes_come_first(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(4)]
    for file in files:
        Image.new("RGB", (4, 4)).save(file)
    figure = pictures.most_confused(predictions(), files, CLASSES)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["dog, taken for owl\n90%  1.png", "dog, taken for owl\n60%  2.png"]
    right = Predictions(numbers=np.arange(3), labels=np.arange(3), probabilities=np.eye(3, dtype=np.float32))
    assert pictures.most_confused(right, files, CLASSES) is None


def test_a_batch_is_shown_as_it_was_before_normalisation() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(1, 3, 1, 1)
    figure = pictures.batch(
        (pixels - mean) / std,
        ["a.png", "b.png"],
        preprocessing={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]},
    )
    shown = figure.axes[1].get_images()[0].get_array()
    np.testing.assert_allclose(shown, pixels[1].permute(1, 2, 0).numpy(), atol=1e-6)
