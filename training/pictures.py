"""What a person looks at after training: the confusion matrix, the most confused images, an augmented batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

MOST_CLASSES = 40
"""Classes of a confusion matrix that can still be read; of more, those that are confused most are shown."""

MOST_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A single-label model's answers on a split."""

    numbers: np.ndarray
    """int64 [N], image numbers."""

    labels: np.ndarray
    """int64 [N]."""

    probabilities: np.ndarray
    """float32 [N, C]."""

    def matrix(self) -> np.ndarray:
        """int64 [C, C], true class by predicted class."""
        import numpy as np

        num_classes = self.probabilities.shape[1]
        counts = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(counts, (self.labels, self.probabilities.argmax(1)), 1)
        return counts


def confusion_matrix(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Rows are true classes, each summing to 1; of many classes those that are confused most."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = predictions.matrix()
    wrong = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    part = counts[np.ix_(shown, shown)]
    shares = part / np.maximum(counts.sum(1)[shown, None], 1)
    side = max(4.0, 0.4 * len(shown) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    names = [classes[index] for index in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90)
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in zip(*np.nonzero(part), strict=True):
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            str(part[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    right = counts.diagonal().sum() / max(counts.sum(), 1)
    left_out = (
        f"; {len(shown)} of {len(classes)} classes, those confused most" if len(shown) < len(classes) else ""
    )
    axes.set_title(f"{counts.sum()} images, {right:.2%} right{left_out}", fontsize=10)
    return figure


def most_confused(predictions: Predictions, files: Sequence[Path], classes: Sequence[str]) -> Figure | None:
    """The wrong answers given with the most certainty, as the files are; None when every answer is right."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    predicted = predictions.probabilities.argmax(1)
    wrong = np.nonzero(predicted != predictions.labels)[0]
    if len(wrong) == 0:
        return None
    certainty = predictions.probabilities[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-certainty, kind="stable")[:MOST_IMAGES]]
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows), layout="constrained")
    for axes, index in zip(figure.subplots(rows, columns, squeeze=False).flat, worst, strict=False):
        file = files[predictions.numbers[index]]
        with Image.open(file) as image:
            axes.imshow(image.convert("RGB"))
        share = predictions.probabilities[index, predicted[index]]
        true, answer = classes[predictions.labels[index]], classes[predicted[index]]
        axes.set_title(f"{true}, taken for {answer}\n{share:.0%}  {file.name}", fontsize=8)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def batch(images: torch.Tensor, names: Sequence[str], *, preprocessing: dict[str, Any]) -> Figure:
    """The first images of a training batch (float32 [B, C, H, W], normalised), as the model sees them."""
    import torch
    from matplotlib.figure import Figure

    shown = images[:MOST_IMAGES].float().cpu()
    mean, std = (torch.tensor(preprocessing[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = (shown * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    columns = min(4, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axes, image, name in zip(
        figure.subplots(rows, columns, squeeze=False).flat, pixels, names, strict=False
    ):
        axes.imshow(image)
        axes.set_title(name, fontsize=8)
    for axes in figure.axes:
        axes.axis("off")
    return figure
