"""calibration.png and confusion.png: what an evaluation looks like, for whoever opens the artifact or the run."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from tfx.dsl.io import fileio

from isthmus.tfx_pipeline.evaluation_tally import NUM_BINS, Tally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOR, _MUTED = "#2a7f62", "#444444"
_MAX_CLASSES = 30
_MAX_NUMBERS = 15


def draw_calibration(tally: Tally, target: str, *, title: str) -> None:
    """Accuracy against confidence, and below how many images have that confidence."""
    figure = _figure(6, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    middles = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    filled = [i for i, one in enumerate(tally.bins) if one.num_images]
    confidence = [tally.bins[i].sum_confidence / tally.bins[i].num_images for i in filled]
    accuracy = [tally.bins[i].num_right / tally.bins[i].num_images for i in filled]
    above.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    above.plot(confidence, accuracy, color=_COLOR, marker="o", label="this model")
    above.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    above.set_title(f"{title}: expected calibration error {tally.calibration_error:.4f}", fontsize=10)
    below.bar(middles, [one.num_images for one in tally.bins], width=0.9 / NUM_BINS, color=_COLOR)
    below.set(xlabel="probability of the answered class", ylabel="images")
    _save(figure, target)


def draw_confusion(tally: Tally, target: str, *, title: str, labels: list[str]) -> None:
    """Rows: the class; columns: the answer; each row's shares. Of many classes, those most confused."""
    mistakes: Counter[int] = Counter()
    for label, answer, count in tally.confusion:
        if label != answer:
            mistakes[label] += count
            mistakes[answer] += count
    shown = list(range(len(labels)))
    if len(labels) > _MAX_CLASSES:
        shown = sorted(sorted(shown, key=lambda index: (-mistakes[index], index))[:_MAX_CLASSES])
        title = f"{title} (the {_MAX_CLASSES} classes of {len(labels)} with the most mistakes)"
    place = {index: row for row, index in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    totals: Counter[int] = Counter()
    for label, answer, count in tally.confusion:
        totals[label] += count
        if label in place and answer in place:
            counts[place[label], place[answer]] = count
    shares = counts / np.maximum([[totals[index]] for index in shown], 1)
    figure = _figure(7, 6.5)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    names = [labels[index] if len(labels[index]) <= 16 else labels[index][:15] + "…" for index in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set(xlabel="answered", ylabel="is")
    axes.set_title(
        f"{title}: accuracy {tally.whole.accuracy:.4f} on {tally.whole.num_images} images", fontsize=10
    )
    if len(shown) <= _MAX_NUMBERS:
        for (row, column), number in np.ndenumerate(counts):
            if number:
                color = "white" if shares[row, column] > 0.5 else _MUTED
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, label="share of the class", fraction=0.045)
    _save(figure, target)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, target: str) -> None:
    """Through TFX's file system: the artifact may be in an object store."""
    buffer = io.BytesIO()
    # Without the version text matplotlib's PNG depends on the picture alone.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with fileio.open(target, "wb") as file:
        file.write(buffer.getvalue())
