"""Parity arithmetic: how far a candidate's answers are from torch's. Numpy only, functions of values.

The error of a stage is max |Δlogit| ÷ the standard deviation of the reference logits *between images*,
averaged over classes. Dividing by that spread makes the number mean something for any net: a randomly
initialised one gives every image nearly the same logits, and an absolute tolerance would let it pass with
everything wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from isthmus.export.arithmetic import (
    comparable_logits,
    decision_agreement,
    image_errors,
    log_softmax,
    logit_error,
    recovered_logits,
    spread,
    top1_agreement,
)
from isthmus.export.config import STAGES, GateConfig, Override, Stage

__all__ = [
    "Measurement",
    "Report",
    "StageResult",
    "comparable_logits",
    "decision_agreement",
    "failed_stage",
    "image_errors",
    "judge_logits",
    "judge_pixels",
    "log_softmax",
    "logit_error",
    "recovered_logits",
    "spread",
    "top1_agreement",
]

TITLES: dict[Stage, str] = {
    "onnxruntime": "torch → ONNX Runtime",
    "saved_model": "torch → SavedModel",
    "preprocessing": "preprocessing",
    "end_to_end": "image bytes → answer",
    "server_grpc": "server over gRPC",
    "server_rest": "server over REST",
    "precision": "reduced precision",
    "litert": "torch → LiteRT",
}

_PERCENTILES = (50.0, 95.0, 99.0)
_NUM_WORST = 5


@dataclass(kw_only=True)
class StageResult:
    """The verdict on one stage of the ladder."""

    stage: Stage
    """Which one."""

    error: float | None
    """The largest measured, in units of `spread` (`preprocessing`: a count). None: not finite, or not run."""

    limit: float | None
    """What `error` may be at most; None: it is recorded only, and agreement decides (reduced precision)."""

    top1_agreement: float | None
    """The smallest share measured; None for `preprocessing`, and where nothing could be measured."""

    passed: bool
    """Within every limit. A stage that could not run has failed."""

    problem: str | None = None
    """Why not, in words, when it did not pass."""

    num_images: int = 0
    """Images compared."""

    percentiles: dict[str, float | None] = field(default_factory=dict)
    """p50, p95, p99 of the images' errors (of their worst measurement)."""

    worst: list[dict[str, Any]] = field(default_factory=list)
    """The images with the largest errors: index, path, error, reference_top1, candidate_top1."""

    measurements: list[dict[str, Any]] = field(default_factory=list)
    """Each way it was measured (batch size, loader, signature), with its own error and agreement."""

    note: str | None = None
    """What has to be known about how it was measured, in words."""

    metric: dict[str, Any] | None = None
    """The evaluation metric, where the stage measures it; see `reduced.metric_of`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def title(self) -> str:
        """What a person calls the stage."""
        return TITLES[self.stage]

    def line(self) -> str:
        """One line for a person: title, error, limit, agreement."""
        if not self.passed:
            return f"{self.title:<22} FAILED: {self.problem}"
        if self.stage == "preprocessing":
            return f"{self.title:<22} {self.error:.0f} differing pixel values (limit {self.limit:.0f})"
        agreement = "" if self.top1_agreement is None else f"  top-1 {100 * self.top1_agreement:.4g} %"
        note = f"  ({self.note})" if self.note else ""
        limit = "" if self.limit is None else f" (limit {self.limit:.1e})"
        return f"{self.title:<22} {self.error:.1e}{limit}{agreement}{note}"


@dataclass(kw_only=True, frozen=True, eq=False)
class Measurement:
    """One way in which a stage was measured."""

    what: str
    """Batch size, loader, signature: for the report."""

    candidate: np.ndarray
    """Logits [n, C], in the reference's order."""

    reference: np.ndarray | None = None
    """What to compare with, [N, C]; None: the stage's reference."""

    rows: Sequence[int] | None = None
    """The n images that were measured, by index; None: all N."""

    inconsistent: str | None = None
    """Something besides the numbers is wrong (a label that is not the class's); the stage fails with it."""


def judge_logits(
    stage: Stage,
    reference: np.ndarray,
    measurements: Sequence[Measurement],
    *,
    gates: GateConfig,
    head: str,
    paths: Sequence[str],
) -> StageResult:
    """Compare every measurement of a stage with the reference logits [N, C] and apply the gates.

    The stage's error is its worst measurement's; `worst` names the images that have it.
    """
    if not measurements:
        return failed_stage(stage, "nothing was measured", gates=gates)
    agreement_of = decision_agreement if head == "multi_label" else top1_agreement
    errors = np.full((len(measurements), len(reference)), -1.0)
    agreements, rows = [], []
    for row, measured in enumerate(measurements):
        truth = reference if measured.reference is None else measured.reference
        unit, images = spread(truth), _images_of(measured, len(reference))
        if measured.candidate.shape != truth[images].shape:
            got, want = measured.candidate.shape, truth[images].shape
            return failed_stage(stage, f"{measured.what}: shape {got} instead of {want}", gates=gates)
        errors[row, images] = image_errors(truth[images], measured.candidate, unit=unit)
        agreements.append(
            agreement_of(truth[images], measured.candidate, tie_margin=gates.tie_margin, unit=unit)
        )
        rows.append(
            {
                "what": measured.what,
                "error": _finite(errors[row].max()),
                "top1_agreement": _finite(agreements[-1]),
                "num_images": len(images),
            }
        )
    per_image = errors.max(axis=0)
    worst = [
        _worst_image(
            i, measurements[int(errors[:, i].argmax())], reference, error=per_image[i], path=paths[i]
        )
        for i in np.argsort(-per_image, kind="stable")[:_NUM_WORST].tolist()
    ]
    error, agreement = float(per_image.max()), float(np.min(agreements))
    problem = next((m.inconsistent for m in measurements if m.inconsistent), None)
    limit = np.finfo(np.float64).max if gates.logit_error is None else gates.logit_error
    if problem is None and not error <= limit:
        far = f"{error:.1e}" if np.isfinite(error) else "not a finite number"
        allowed = "" if gates.logit_error is None else f", limit {limit:.1e}"
        problem = f"{far}{allowed}, worst on {worst[0]['path']} ({worst[0]['measurement']})"
    if problem is None and not agreement >= gates.top1_agreement:
        problem = f"top-1 agreement {agreement:.2%}, at least {gates.top1_agreement:.2%} wanted"
    return StageResult(
        stage=stage,
        error=_finite(error),
        limit=gates.logit_error,
        top1_agreement=_finite(agreement),
        passed=problem is None,
        problem=problem,
        num_images=int((per_image >= 0).sum()),
        percentiles=_percentiles(per_image[per_image >= 0]),
        worst=worst,
        measurements=rows,
    )


def _worst_image(
    index: int, measured: Measurement, reference: np.ndarray, *, error: float, path: str
) -> dict[str, Any]:
    place = _images_of(measured, len(reference)).index(index)
    return {
        "index": index,
        "path": path,
        "error": _finite(error),
        "measurement": measured.what,
        "reference_top1": int(reference[index].argmax()),
        "candidate_top1": int(measured.candidate[place].argmax()),
    }


def _images_of(measured: Measurement, num_images: int) -> list[int]:
    return list(range(num_images)) if measured.rows is None else list(measured.rows)


def judge_pixels(
    reference: np.ndarray,
    measurements: dict[str, np.ndarray],
    *,
    gates: GateConfig,
    paths: Sequence[str],
) -> StageResult:
    """Compare uint8 pixels [N, H, W, 3] with timm's, value by value; the error is the number that differ.

    Each measurement has a name ("one batch") and pixels in the reference's order.
    """
    stage: Stage = "preprocessing"
    if not measurements:
        return failed_stage(stage, "nothing was measured", gates=gates)
    counts = np.zeros(len(reference), dtype=np.int64)
    levels = np.zeros(len(reference), dtype=np.int64)
    rows: list[dict[str, Any]] = []
    for what, pixels in measurements.items():
        if pixels.shape != reference.shape or pixels.dtype != np.uint8:
            got = f"{pixels.dtype} {pixels.shape}"
            return failed_stage(stage, f"{what}: {got} instead of uint8 {reference.shape}", gates=gates)
        delta = np.abs(pixels.astype(np.int16) - reference.astype(np.int16)).reshape(len(reference), -1)
        counts = np.maximum(counts, (delta > 0).sum(axis=1))
        levels = np.maximum(levels, delta.max(axis=1, initial=0))
        rows.append({"what": what, "error": int((delta > 0).sum()), "top1_agreement": None})
    worst: list[dict[str, Any]] = [
        {"index": int(i), "path": paths[i], "error": int(counts[i]), "largest_difference": int(levels[i])}
        for i in np.argsort(-counts, kind="stable")[:_NUM_WORST]
    ]
    error = max(row["error"] for row in rows)
    passed = error <= gates.differing_pixels
    problem = (
        f"{error} differing pixel values, limit {gates.differing_pixels}, worst on {worst[0]['path']}: "
        f"{worst[0]['error']}, by up to {worst[0]['largest_difference']} levels"
    )
    return StageResult(
        stage=stage,
        error=float(error),
        limit=float(gates.differing_pixels),
        top1_agreement=None,
        passed=passed,
        problem=None if passed else problem,
        num_images=len(reference),
        percentiles=_percentiles(counts.astype(np.float64)),
        worst=worst,
        measurements=rows,
    )


def failed_stage(stage: Stage, problem: str, *, gates: GateConfig) -> StageResult:
    """The verdict on a stage that could not be measured: it has failed."""
    limit = float(gates.differing_pixels) if stage == "preprocessing" else gates.logit_error
    return StageResult(
        stage=stage, error=None, limit=limit, top1_agreement=None, passed=False, problem=problem
    )


@dataclass(kw_only=True)
class Report:
    """All stages of one try."""

    gates: GateConfig
    """The limits that were applied."""

    stages: list[StageResult]
    """In the order of `config.STAGES`; a stage that never ran is there, failed."""

    @classmethod
    def of(
        cls, stages: Sequence[StageResult], *, gates: GateConfig, expected: Sequence[Stage] = STAGES
    ) -> Report:
        """Put the stages in order and add a failed one for each that is expected and missing."""
        known = {result.stage: result for result in stages}
        complete = [known.get(name) or failed_stage(name, "it never ran", gates=gates) for name in expected]
        return cls(gates=gates, stages=complete)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Report:
        """The inverse of `as_dict`."""
        return cls(
            gates=GateConfig(**value["gates"]),
            stages=[StageResult(**stage) for stage in value["stages"]],
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for parity.json."""
        return {
            "passed": self.passed,
            "gates": asdict(self.gates),
            "stages": [stage.as_dict() for stage in self.stages],
        }

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(stage.passed for stage in self.stages)

    @property
    def failures(self) -> list[StageResult]:
        """The stages that did not pass."""
        return [stage for stage in self.stages if not stage.passed]

    def refused_by(self, overrides: Sequence[Override]) -> list[StageResult]:
        """The failures that nobody has accepted."""
        accepted = {override.gate for override in overrides}
        return [stage for stage in self.failures if stage.stage not in accepted]


def _percentiles(values: np.ndarray) -> dict[str, float | None]:
    """p50, p95, p99 of values [N], by name; an observed value each, so infinities stay apart."""
    return {f"p{q:.0f}": _finite(np.percentile(values, q, method="higher")) for q in _PERCENTILES}


def _finite(value: float) -> float | None:
    """A number that JSON can hold, or None."""
    return float(value) if np.isfinite(value) else None
