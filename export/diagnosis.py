"""Where a refused export went wrong: a table and a picture of the lowered graph against the ONNX model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.export.config import Precision
from isthmus.export.errors import ExportError
from isthmus.export.jobs import JobRunner
from isthmus.export.ladder import Attempt
from isthmus.export.reference import Reference
from isthmus.lineage.files import write_json

log = logging.getLogger(__name__)

DIAGNOSE_MODULE = "isthmus.export.tf_half.diagnose"
_NUM_IMAGES = 3
_AROUND = 4

# Stages that ask the graph itself, with tensors.
_OF_THE_GRAPH = {"saved_model", "precision"}

_CAUSES = {
    "lowering": "the graph as it was lowered",
    "optimisers": "what TensorFlow's optimisers make of the graph (as written it is right)",
}


def diagnose(
    attempts: Sequence[Attempt],
    *,
    runner: JobRunner,
    folder: Path,
    onnx: Path,
    reference: Path,
    limit: float,
    stem: Path,
    precision: Precision = "fp32",
) -> list[str]:
    """Compare each failed rung with the ONNX model, node by node; writes <stem>.json and <stem>-<rung>.png.

    Args:
        attempts: The rungs that were tried.
        runner: Starts the TensorFlow processes.
        folder: Working folder for them.
        onnx: The model.
        reference: reference.npz.
        limit: What counts as diverging, in standard deviations of a node's output.
        stem: Where the answers go, without suffix.
        precision: Of the export. Compared is the graph in fp32, from which a reduced one is made: a lowering that
            is right leaves the precision as what changed the answers.

    Returns:
        Lines for the user.
    """
    lines: list[str] = []
    answers: dict[str, Any] = {}
    for attempt in attempts:
        if attempt.problem is None:
            continue
        lines.append(f"rung {attempt.rung}: {attempt.problem}")
        if not (attempt.saved_model / "saved_model.pb").is_file():
            lines.append("  it gave no graph: there is nothing to compare")
            answers[attempt.rung] = {"problem": attempt.problem}
            continue
        request = {
            "onnx": str(onnx),
            "rung": attempt.rung,
            "reference": str(reference),
            "rows": _worst_images(attempt, len(Reference.load(reference))),
            "limit": limit,
        }
        try:
            answer = runner.run(DIAGNOSE_MODULE, folder / f"diagnose-{attempt.rung}", request)
        except ExportError as error:
            lines.append(f"  could not be compared: {error}")
            continue
        answers[attempt.rung] = {"problem": attempt.problem, **answer}
        picture = stem.with_name(f"{stem.name}-{attempt.rung}.png")
        _draw(answer, Reference.load(reference), picture, title=f"rung {attempt.rung}", limit=limit)
        failed = [stage.stage for stage in attempt.report.failures]
        shown = table(
            answer,
            limit=limit,
            paths=Reference.load(reference).paths,
            blamed=precision if precision != "fp32" and _OF_THE_GRAPH & set(failed) else None,
        )
        if precision != "fp32":
            lines.append(f"  compared in fp32, from which {precision} is made")
        lines += [f"  {line}" for line in shown]
        lines.append(f"  picture: {picture}")
    write_json(stem.with_name(f"{stem.name}.json"), answers)
    return lines


def table(
    answer: dict[str, Any], *, limit: float, paths: Sequence[str], blamed: Precision | None = None
) -> list[str]:
    """The diverging node with its neighbours, a line each; `blamed`: the precision to blame where there is none."""
    first, rows = answer["first"], answer["rows"]
    if first is None:
        verdict = f"it is {blamed} that changes the answers" if blamed else "not this graph is to blame"
        return [f"every ONNX node's output agrees with ONNX Runtime within {limit:.1e}: {verdict}"]
    place = next(i for i, row in enumerate(rows) if row["output"] == first["output"])
    lines = [
        f"first diverging ONNX node: {first['node']} ({first['op_type']}), {_far(first['error'])} standard "
        f"deviations of its output on {paths[first['image']]}; in {_CAUSES[answer['cause']]}",
        f"{'#':>5} {'operator':<20} {'error':>9}  node",
    ]
    for i in range(max(0, place - _AROUND), min(len(rows), place + _AROUND + 1)):
        row = rows[i]
        mark = "  ← first beyond the limit" if i == place else ""
        lines.append(f"{row['index']:>5} {row['op_type']:<20} {_far(row['error']):>9}  {row['node']}{mark}")
    return lines


def _worst_images(attempt: Attempt, num_images: int) -> list[int]:
    """The images furthest off, filled up with others: what fails only in a batch needs one."""
    worst = [
        row["index"] for stage in attempt.report.stages for row in stage.worst if stage.stage == "saved_model"
    ]
    return list(dict.fromkeys([*worst, *range(num_images)]))[: min(_NUM_IMAGES, num_images)]


def _far(error: float | None) -> str:
    return "inf" if error is None else f"{error:.1e}"


def _draw(answer: dict[str, Any], reference: Reference, target: Path, *, title: str, limit: float) -> None:
    """Error by ONNX node, log scale, and the image on which the first one diverges."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    curve, photo = figure.subplots(1, 2, width_ratios=[3.4, 1])
    rows, first = answer["rows"], answer["first"]
    finite = [row["error"] for row in rows if row["error"]]
    top = 10 * max([*finite, limit])
    curve.plot(
        [row["index"] for row in rows],
        [max(_or(row["error"], top), 1e-9) for row in rows],
        ".-",
        color="#2a7f62",
    )
    curve.axhline(limit, color="#444444", linestyle="--", linewidth=1)
    curve.set_yscale("log")
    curve.set_xlabel("ONNX node")
    curve.set_ylabel("max |Δ| ÷ std of the node's output")
    curve.set_title(
        title
        if first is None
        else f"{title}: first beyond the limit is {first['node']} ({first['op_type']})",
        fontsize=9,
    )
    photo.set_xticks([])
    photo.set_yticks([])
    shown = rows[-1]["image"] if first is None and rows else (first or {"image": 0})["image"]
    if first is not None:
        curve.axvline(first["index"], color="#b3312c", linewidth=1.5)
    photo.imshow(reference.pixels[shown], interpolation="nearest")
    photo.set_xlabel(reference.paths[shown], fontsize=8)
    figure.savefig(target, format="png", metadata={"Software": None})


def _or(error: float | None, otherwise: float) -> float:
    return otherwise if error is None else error
