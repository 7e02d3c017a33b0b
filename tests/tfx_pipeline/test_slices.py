"""Intervals against their definitions, buckets, and the rule by which slices are judged."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.tfx_pipeline.config import EvaluationGate
from isthmus.tfx_pipeline.slices import WHOLE, Slice, bucket, paired, refusals, too_small, wilson


@given(st.integers(1, 5000), st.data(), st.floats(0.5, 0.999))
def test_wilsons_ends_solve_its_equation(num_images: int, data: st.DataObject, confidence: float) -> None:
    """At either end p the observed share is exactly z standard errors of p away (or the end is 0 or 1)."""
    num_right = data.draw(st.integers(0, num_images))
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), num_right / num_images
    low, high = wilson(num_right, num_images, confidence)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(
                z * math.sqrt(end * (1 - end) / num_images), rel=1e-6, abs=1e-9
            )


def test_wilson_of_a_published_example() -> None:
    """Newcombe (1998), 81 of 263: 0.2553 to 0.3662."""
    assert wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_paired_interval_is_symmetric(gained: int, lost: int, same: int) -> None:
    num_images = gained + lost + same + 1
    low, high = paired(gained=gained, lost=lost, num_images=num_images, confidence=0.95)
    mirrored = paired(gained=lost, lost=gained, num_images=num_images, confidence=0.95)
    assert mirrored == pytest.approx((-high, -low))
    assert -1 <= low <= high <= 1


def test_agreeing_images_narrow_the_paired_interval() -> None:
    """The point of pairing: 5 lost of 1,000 is known far better than two shares of 1,000 apart."""
    low, high = paired(gained=0, lost=5, num_images=1000, confidence=0.95)
    assert -0.012 < low < -0.005 < high < 0


@pytest.mark.parametrize(
    ("value", "name"), [(0, "0-31"), (31.9, "0-31"), (32, "32-63"), (63, "32-63"), (64, "64 and more")]
)
def test_buckets(value: float, name: str) -> None:
    assert bucket(value, (32, 64)) == name


def made(kind: str, value: str, num_images: int, num_right: int, *, champion: int | None = None) -> Slice:
    """A slice in which the better model has right whatever the other has."""
    both = None if champion is None else min(num_right, champion)
    return Slice(
        kind=kind,
        value=value,
        num_images=num_images,
        num_right=num_right,
        num_champion_right=champion,
        num_both_right=both,
    )


def test_three_images_neither_block_nor_pass() -> None:
    slices = [made(WHOLE, "", 103, 100), made("class", "cat", 100, 100), made("class", "dog", 3, 0)]
    gate = EvaluationGate(min_class_accuracy=0.9)
    assert refusals(slices, gate) == []
    assert [one.value for one in too_small(slices, gate)] == ["dog"]
    lucky = [made(WHOLE, "", 103, 100), made("class", "dog", 3, 3)]
    assert refusals(lucky, gate) == ["accuracy by class cannot be judged: no class has 30 images or more"]


def test_a_slice_below_the_limit_by_chance_is_no_refusal() -> None:
    gate = EvaluationGate(min_size_accuracy=0.9)
    assert refusals([made("size", "32-63", 40, 35)], gate) == []
    (reason,) = refusals([made("size", "32-63", 400, 340)], gate)
    assert reason == (
        "accuracy on size 32-63 pixels is 0.8500 (95% interval 0.8117 to 0.8817, n = 400), at least 0.9 is wanted"
    )


def test_a_slice_that_got_worse_than_the_champion() -> None:
    gate = EvaluationGate(max_slice_accuracy_drop=0.02)
    slices = [
        made("brightness", "0-63", 100, 80, champion=98),
        made("brightness", "64-127", 100, 97, champion=98),
    ]
    (reason,) = refusals(slices, gate)
    assert reason.startswith("accuracy on brightness 0-63 of 255 is 0.1800 (95% interval 0.")
    assert reason.endswith(", n = 100) lower than the champion's, at most 0.02 is allowed")
    assert refusals([made("size", "0-31", 100, 80)], gate) == [], "there is no champion to be worse than"
    assert len(refusals([made("size", "0-31", 9, 8, champion=9)], gate)) == 3, "nothing could be judged"
