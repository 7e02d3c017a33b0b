"""parity.png: the verdict of parity.json as a picture, for whoever opens the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.export.parity import Report, StageResult
from isthmus.export.reference import Reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PASSED = "#2a7f62"
_FAILED = "#b3312c"
_LIMIT = "#444444"
# float32 itself: errors below are drawn at the left edge.
_SMALLEST = 1e-8
_NUM_WORST = 5


def draw(report: Report, reference: Reference, target: Path, *, title: str, labels: list[str]) -> None:
    """Write the picture: each stage's error against its limit, and the images that are furthest off.

    Args:
        report: All stages.
        reference: The images they were measured on.
        target: The PNG to write.
        title: Name and model.
        labels: Class names by index.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, _NUM_WORST, height_ratios=[1.25, 1])
    failed = len(report.failures)
    verdict = "passed" if report.passed else f"FAILED in {failed} of {len(report.stages)} stages"
    figure.suptitle(f"{title}: parity {verdict}", fontsize=13, color=_PASSED if report.passed else _FAILED)
    _draw_stages(figure.add_subplot(grid[0, :]), report)
    for column, row in enumerate(_worst_images(report)):
        _draw_image(figure.add_subplot(grid[1, column]), row, reference, labels)
    # Without the version text matplotlib's PNG depends on the picture alone.
    figure.savefig(target, format="png", metadata={"Software": None})


def _draw_stages(axes: Axes, report: Report) -> None:
    logit_stages = [stage for stage in report.stages if stage.stage != "preprocessing"]
    shown = [value for stage in logit_stages for value in (stage.error, stage.limit) if value is not None]
    right = 30 * max(shown, default=1.0)
    for row, stage in enumerate(report.stages):
        color = _PASSED if stage.passed else _FAILED
        _write(axes, (1.01, row), _stage_text(stage), color)
        if stage.error is None:
            axes.axhspan(row - 0.3, row + 0.3, color=_FAILED, alpha=0.12, linewidth=0)
            _write(axes, (0.01, row), f"no number: {stage.problem}"[:110], color)
        elif stage.stage == "preprocessing":
            # A count, not a share of the spread: it has no place on this axis.
            axes.axhspan(row - 0.3, row + 0.3, color="#f2f2f2", zorder=0, linewidth=0)
            _write(
                axes,
                (0.01, row),
                f"{stage.error:.0f} differing pixel values (limit {stage.limit:.0f})",
                color,
            )
        else:
            _draw_bar(axes, row, stage, color)
    axes.set_xscale("log")
    axes.set_xlim(_SMALLEST, right)
    axes.set_ylim(len(report.stages) - 0.5, -0.5)
    axes.set_yticks(range(len(report.stages)), [stage.title for stage in report.stages])
    axes.set_xlabel(
        "max |Δlogit| ÷ std of torch's logits between images"
        "      (bar: worst image, white: median image, dashed: limit)",
        fontsize=9,
    )
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bar(axes: Axes, row: int, stage: StageResult, color: str) -> None:
    assert stage.error is not None
    axes.barh(
        row, max(stage.error, _SMALLEST) - _SMALLEST, left=_SMALLEST, height=0.55, color=color, alpha=0.85
    )
    median = stage.percentiles.get("p50")
    if median:
        axes.plot([max(median, _SMALLEST)] * 2, [row - 0.27, row + 0.27], color="white", linewidth=1.5)
    if stage.limit is None:
        return
    axes.plot([stage.limit] * 2, [row - 0.45, row + 0.45], color=_LIMIT, linestyle="--", linewidth=1.4)


def _write(axes: Axes, at: tuple[float, float], text: str, color: str) -> None:
    axes.annotate(text, at, xycoords=("axes fraction", "data"), va="center", color=color, fontsize=9)


def _stage_text(stage: StageResult) -> str:
    mark = "passed" if stage.passed else "FAILED"
    if stage.error is None or stage.stage == "preprocessing":
        return mark
    agreement = "" if stage.top1_agreement is None else f", top-1 {100 * stage.top1_agreement:.4g} %"
    return f"{stage.error:.1e} {mark}{agreement}"


def _worst_images(report: Report) -> list[dict[str, Any]]:
    """The images furthest off in any logit stage, each once, with the stage where it is worst."""
    rows: dict[int, dict[str, Any]] = {}
    for stage in report.stages:
        if stage.stage == "preprocessing":
            continue
        for row in stage.worst:
            far = np.inf if row["error"] is None else row["error"]
            if row["index"] not in rows or far > rows[row["index"]]["far"]:
                rows[row["index"]] = {**row, "far": far, "title": stage.title}
    return sorted(rows.values(), key=lambda row: -row["far"])[:_NUM_WORST]


def _draw_image(axes: Axes, row: dict[str, Any], reference: Reference, labels: list[str]) -> None:
    axes.imshow(reference.pixels[row["index"]], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    agrees = row["reference_top1"] == row["candidate_top1"]
    far = "not finite" if row["error"] is None else f"{row['error']:.1e}"
    name = row["path"] if len(row["path"]) <= 30 else "…" + row["path"][-29:]
    axes.set_title(f"{far}\n{row['title']}", fontsize=8)
    truth = labels[reference.labels[row["index"]]] if reference.labels[row["index"]] >= 0 else "?"
    answers = (
        f"torch: {_short(labels[row['reference_top1']])}, export: {_short(labels[row['candidate_top1']])}"
    )
    axes.set_xlabel(
        f"{name} (is {_short(truth)})\n{answers}", fontsize=8, color="black" if agrees else _FAILED
    )


def _short(label: str) -> str:
    return label if len(label) <= 16 else label[:15] + "…"
