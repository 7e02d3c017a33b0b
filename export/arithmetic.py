"""The arithmetic of parity: errors, agreement, and what survives in probabilities. Numpy only."""

from __future__ import annotations

import numpy as np

#: Log-probabilities are compared down to here, and sigmoid logits up to here: float32 rounds the rest away.
_LOG_FLOOR = -60.0
_SIGMOID_CEILING = 8.0


def spread(reference: np.ndarray) -> float:
    """The unit of every error: standard deviation of logits [N, C] between images, averaged over classes."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.std(np.asarray(reference, dtype=np.float64), axis=0)))


def image_errors(reference: np.ndarray, candidate: np.ndarray, *, unit: float | None = None) -> np.ndarray:
    """Error of each image, float64 [N]: max over classes of |Δlogit| ÷ unit, which is spread(reference).

    An image whose candidate is not finite has an infinite error, and so has every image of a reference that
    is not finite or is the same for all images (it could prove nothing). Give `unit` where the two are some
    images of a larger reference.

    Raises:
        ValueError: The two do not have one shape [N, C].
    """
    if reference.ndim != 2 or reference.shape != candidate.shape:
        raise ValueError(f"want two arrays [N, C], got {reference.shape} and {candidate.shape}")
    unit = spread(reference) if unit is None else unit
    if not (np.isfinite(unit) and unit > 0):
        return np.full(len(reference), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.abs(np.asarray(candidate, dtype=np.float64) - np.asarray(reference, dtype=np.float64))
        errors = delta.max(axis=1) / unit
    return np.where(np.isfinite(errors), errors, np.inf)


def logit_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """The error of a stage: the largest of its images' errors. See `image_errors`."""
    return float(image_errors(reference, candidate).max(initial=0.0)) if len(reference) else float("inf")


def top1_agreement(
    reference: np.ndarray, candidate: np.ndarray, *, tie_margin: float, unit: float | None = None
) -> float:
    """Share of images whose best class is the reference's, leaving out ties; NaN when every image is one.

    An image is a tie when the reference's two best classes are within `tie_margin` × unit (`image_errors`).
    """
    unit = spread(reference) if unit is None else unit
    if reference.shape[1] == 1:
        return 1.0
    ordered = np.sort(np.asarray(reference, dtype=np.float64), axis=1)
    decided = ordered[:, -1] - ordered[:, -2] > tie_margin * unit
    if not decided.any():
        return float("nan")
    same = reference.argmax(axis=1) == candidate.argmax(axis=1)
    return float(same[decided].mean())


def decision_agreement(
    reference: np.ndarray, candidate: np.ndarray, *, tie_margin: float, unit: float | None = None
) -> float:
    """The same for a multi-label head: share of (image, class) pairs on the reference's side of ½."""
    unit = spread(reference) if unit is None else unit
    decided = np.abs(np.asarray(reference, dtype=np.float64)) > tie_margin * unit
    if not decided.any():
        return float("nan")
    return float(((reference > 0) == (candidate > 0))[decided].mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [N, C] of logits [N, C]."""
    shifted = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shifted = shifted - shifted.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def comparable_logits(logits: np.ndarray, *, head: str) -> np.ndarray:
    """What of the logits [N, C] survives in float32 probabilities: the reference for `recovered_logits`.

    A softmax forgets a constant per image, so its logits are compared as log-probabilities.
    """
    if head == "multi_label":
        return np.clip(np.asarray(logits, dtype=np.float64), _LOG_FLOOR, _SIGMOID_CEILING)
    return np.maximum(log_softmax(logits), _LOG_FLOOR)


def recovered_logits(probabilities: np.ndarray, *, head: str) -> np.ndarray:
    """The logits that probabilities [N, C] came from, as far as `comparable_logits` goes."""
    p = np.asarray(probabilities, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if head == "multi_label":
            return np.clip(np.log(p) - np.log1p(-p), _LOG_FLOOR, _SIGMOID_CEILING)
        return np.maximum(np.log(p), _LOG_FLOOR)
