"""Slices of the evaluation split and how they are judged. Pure arithmetic, standard library only.

A share of right answers is given with Wilson's interval, a change against the champion with the interval of a
difference between paired shares (both models answer the same images; Agresti and Min's, with half an image added to
each cell of the two-by-two table). Both hold for few images and near 0 and 1, where the textbook's do not.

How a slice is judged, so that a handful of images neither blocks a model nor lets one pass by luck:

- A slice of fewer than `min_slice_images` images is not judged, and the report says so.
- It is refused when even the favourable end of its interval is on the wrong side of the limit.
- A threshold for a kind of slices of which none is large enough to be judged is a gate that could not run, and
  that is a refusal.

The whole split is judged by its plain value: whoever set the threshold also chose the split.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.config import EvaluationGate

KINDS = ("class", "size", "brightness")
"""What images are sliced by: their class, the shorter side in pixels, the mean luma in 8-bit levels."""

WHOLE = "whole"
"""The kind of the one slice that holds every image."""


@dataclass(kw_only=True, frozen=True)
class Slice:
    """What was counted in one slice."""

    kind: str
    """One of KINDS, or WHOLE."""

    value: str
    """The class, or the bucket such as `64-127`; "" for the whole."""

    num_images: int
    """Images in it."""

    num_right: int
    """Of those, how many the candidate has right."""

    num_champion_right: int | None = None
    """How many the champion has right; None without a champion."""

    num_both_right: int | None = None
    """How many both have right; None without a champion."""

    @property
    def accuracy(self) -> float:
        """The candidate's share of right answers."""
        return self.num_right / self.num_images

    @property
    def change(self) -> float | None:
        """The candidate's accuracy minus the champion's; None without one."""
        if self.num_champion_right is None:
            return None
        return (self.num_right - self.num_champion_right) / self.num_images

    def accuracy_interval(self, confidence: float) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return wilson(self.num_right, self.num_images, confidence)

    def change_interval(self, confidence: float) -> tuple[float, float]:
        """The paired interval of the change; there must be a champion."""
        assert self.num_champion_right is not None
        assert self.num_both_right is not None
        return paired(
            gained=self.num_right - self.num_both_right,
            lost=self.num_champion_right - self.num_both_right,
            num_images=self.num_images,
            confidence=confidence,
        )

    def where(self) -> str:
        """As a sentence names it."""
        if self.kind == WHOLE:
            return "the whole split"
        unit = {"class": "", "size": " pixels", "brightness": " of 255"}[self.kind]
        return f"{self.kind} {self.value}{unit}"


def wilson(num_right: int, num_images: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share, in [0, 1]."""
    z = _z(confidence)
    share, spread = num_right / num_images, z * z / num_images
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num_images + spread / (4 * num_images))
    # Rounding aside, the interval of none begins at 0 and that of all ends at 1.
    low = center - half if num_right else 0.0
    high = center + half if num_right < num_images else 1.0
    return low, high


def paired(*, gained: int, lost: int, num_images: int, confidence: float) -> tuple[float, float]:
    """Agresti and Min's interval of the difference between two shares of the same images, in [-1, 1].

    Args:
        gained: Images that only the candidate has right.
        lost: Images that only the champion has right.
        num_images: All images.
        confidence: Such as 0.95.
    """
    more, less, total = gained + 0.5, lost + 0.5, num_images + 2
    difference = (more - less) / total
    half = _z(confidence) * math.sqrt(more + less - (more - less) ** 2 / total) / total
    return max(-1.0, difference - half), min(1.0, difference + half)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def bucket(value: float, edges: Sequence[int]) -> str:
    """The bucket of a value: `0-31`, `32-63`, … `256 and more` for the edges 32, 64, … 256."""
    index = bisect.bisect_right(edges, value)
    if index == len(edges):
        return f"{edges[-1]} and more"
    return f"{0 if index == 0 else edges[index - 1]}-{edges[index] - 1}"


def refusals(slices: Sequence[Slice], gate: EvaluationGate) -> list[str]:
    """Why the slices refuse a model, one sentence each, in the order of `slices`; empty when they do not."""
    limits = {
        "class": gate.min_class_accuracy,
        "size": gate.min_size_accuracy,
        "brightness": gate.min_brightness_accuracy,
    }
    reasons = []
    judged = set()
    for one in slices:
        if one.kind == WHOLE or one.num_images < gate.min_slice_images:
            continue
        judged.add(one.kind)
        low, high = one.accuracy_interval(gate.confidence)
        limit = limits[one.kind]
        if limit is not None and high < limit:
            measured = f"{one.accuracy:.4f} {_interval(low, high, one, gate)}"
            reasons.append(f"accuracy on {one.where()} is {measured}, at least {limit:g} is wanted")
        if gate.max_slice_accuracy_drop is not None and one.change is not None:
            reasons += _drop(one, gate, gate.max_slice_accuracy_drop)
    asked = [kind for kind in KINDS if limits[kind] is not None]
    has_champion = any(one.change is not None for one in slices)
    if gate.max_slice_accuracy_drop is not None and has_champion and not judged:
        asked = list(KINDS)
    reasons += [
        f"accuracy by {kind} cannot be judged: no {kind} has {gate.min_slice_images} images or more"
        for kind in asked
        if kind not in judged
    ]
    return reasons


def _drop(one: Slice, gate: EvaluationGate, allowed: float) -> list[str]:
    low, high = one.change_interval(gate.confidence)
    assert one.change is not None
    if high >= -allowed:
        return []
    measured = f"{-one.change:.4f} {_interval(-high, -low, one, gate)}"
    return [
        f"accuracy on {one.where()} is {measured} lower than the champion's, at most {allowed:g} is allowed"
    ]


def too_small(slices: Sequence[Slice], gate: EvaluationGate) -> list[Slice]:
    """The slices that are not judged for their size."""
    return [one for one in slices if one.kind != WHOLE and one.num_images < gate.min_slice_images]


def measured(one: Slice, confidence: float, *, change: bool = False) -> str:
    """A number with its interval and the number of images, as sentences have it."""
    if change:
        assert one.change is not None
        low, high = one.change_interval(confidence)
        return (
            f"{one.change:+.4f} ({confidence:.0%} interval {low:+.4f} to {high:+.4f}, n = {one.num_images})"
        )
    low, high = one.accuracy_interval(confidence)
    return f"{one.accuracy:.4f} ({confidence:.0%} interval {low:.4f} to {high:.4f}, n = {one.num_images})"


def _interval(low: float, high: float, one: Slice, gate: EvaluationGate) -> str:
    return f"({gate.confidence:.0%} interval {low:.4f} to {high:.4f}, n = {one.num_images})"
