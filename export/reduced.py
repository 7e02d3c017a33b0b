"""The verdict on a model in reduced precision: the evaluation metric and the answers, against fp32's. Numpy only.

Both are measured on evaluation images, many more than the reference images that parity is measured on: one
changed answer of 64 is 1.6 %. torch answers them in fp32; only pixels and answers are kept while the export runs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.arithmetic import decision_agreement, top1_agreement
from isthmus.export.config import GateConfig, ReducedGateConfig, Stage
from isthmus.export.errors import ExportError
from isthmus.export.parity import Measurement, StageResult, judge_logits


@dataclass(kw_only=True, frozen=True, eq=False)
class Evaluation:
    """N evaluation images (or calibration images), before normalisation, and torch's answers."""

    pixels: np.ndarray
    """uint8 [N, H, W, 3] (NHWC): timm's preprocessing up to its last step."""

    logits: np.ndarray
    """float32 [N, C]: torch's answer in fp32; [N, 0] where nobody asked (calibration)."""

    labels: np.ndarray
    """int64 [N]: the true class, -1 where it is not known."""

    paths: tuple[str, ...]
    """N file names relative to the data root."""

    split: str
    """Where they come from."""

    mean: np.ndarray
    """float32 [3]: what `images` subtracts, in units of 1 = white."""

    std: np.ndarray
    """float32 [3]: what it divides by then."""

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.paths)

    def images(self, rows: slice) -> np.ndarray:
        """float32 [n, H, W, 3]: some of the images as the model takes them."""
        values = self.pixels[rows].astype(np.float32) / np.float32(255)
        return np.asarray((values - self.mean) / self.std, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write a file that lives as long as the export."""
        values = {key: value for key, value in asdict(self).items() if key not in ("paths", "split")}
        np.savez(path, **values, paths=np.array(self.paths, np.str_), split=np.array(self.split))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read it, without unpickling anything.

        Raises:
            ExportError: It is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return cls(
                **{key: arrays[key] for key in ("pixels", "logits", "labels", "mean", "std")},
                paths=tuple(str(name) for name in arrays["paths"]),
                split=str(arrays["split"]),
            )
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ExportError(f"{path} does not hold evaluation images: {error}") from error


def judge_reduced(
    stage: Stage,
    evaluation: Evaluation,
    measurements: dict[str, np.ndarray],
    *,
    limits: ReducedGateConfig,
    head: str,
) -> StageResult:
    """Hold each measurement (what: logits float32 [N, C]) to the limits; the worst one counts.

    The error is recorded and decides nothing, as long as it is a finite number.
    """
    gates = GateConfig(logit_error=None, top1_agreement=limits.top1_agreement, tie_margin=0.0)
    result = judge_logits(
        stage,
        evaluation.logits,
        [Measurement(what=what, candidate=candidate) for what, candidate in measurements.items()],
        gates=gates,
        head=head,
        paths=evaluation.paths,
    )
    if result.error is None:
        return result
    metrics = [
        metric_of(evaluation, candidate, limit=limits.max_metric_drop, head=head)
        for candidate in measurements.values()
    ]
    result.metric = max(metrics, key=lambda metric: float(metric["drop"]))
    result.note = metric_text(result.metric)
    if result.passed and not result.metric["drop"] <= limits.max_metric_drop:
        result.passed = False
        result.problem = f"{result.note}, at most {100 * limits.max_metric_drop:.2f} allowed"
    # `worst` counts by evaluation image, the picture by reference image.
    result.worst = []
    return result


def metric_of(evaluation: Evaluation, candidate: np.ndarray, *, limit: float, head: str) -> dict[str, Any]:
    """How much of the metric is lost: name, reference, candidate, drop, limit, num_images, is_bound.

    With known classes it is the accuracy. Without (`is_bound`), reference and candidate are None and the drop
    is the share of changed answers: an accuracy cannot fall by more, whatever the classes are.
    """
    known = evaluation.labels >= 0
    if head == "multi_label" or not known.any():
        agreement_of = decision_agreement if head == "multi_label" else top1_agreement
        agreement = agreement_of(evaluation.logits, candidate, tie_margin=0.0)
        return {
            "name": "accuracy",
            "reference": None,
            "candidate": None,
            "drop": round(1.0 - agreement, 9),
            "limit": limit,
            "num_images": len(evaluation),
            "is_bound": True,
        }
    truth = evaluation.labels[known]
    before, after = (
        float((logits[known].argmax(axis=1) == truth).mean()) for logits in (evaluation.logits, candidate)
    )
    return {
        "name": "accuracy",
        "reference": before,
        "candidate": after,
        "drop": round(before - after, 9),
        "limit": limit,
        "num_images": int(known.sum()),
        "is_bound": False,
    }


def metric_text(metric: dict[str, Any]) -> str:
    """The metric in words."""
    if metric["is_bound"]:
        return (
            f"{metric['name']} at most {100 * metric['drop']:.2f} points lower: that many of "
            f"{metric['num_images']} answers changed, and no class is known"
        )
    return (
        f"{metric['name']} {100 * metric['candidate']:.2f} % against {100 * metric['reference']:.2f} % "
        f"on {metric['num_images']} images"
    )


def in_chunks(evaluation: Evaluation, size: int) -> Sequence[slice]:
    """The rows in order, `size` at a time; the last may be fewer."""
    return [slice(start, start + size) for start in range(0, len(evaluation), size)]
