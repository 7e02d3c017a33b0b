"""The verdict on reduced precision: metric and answers, each with its own limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isthmus.export.config import ReducedGateConfig
from isthmus.export.errors import ExportError
from isthmus.export.parity import StageResult
from isthmus.export.reduced import Evaluation, in_chunks, judge_reduced

NUM_IMAGES, NUM_CLASSES = 200, 4


def evaluation(*, known: bool = True) -> Evaluation:
    """200 images; fp32 is right on 180 of them."""
    truth = np.arange(NUM_IMAGES) % NUM_CLASSES
    said = np.where(np.arange(NUM_IMAGES) < 20, (truth + 1) % NUM_CLASSES, truth)
    return Evaluation(
        pixels=np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 4, 4, 3), dtype=np.uint8),
        logits=np.eye(NUM_CLASSES, dtype=np.float32)[said] * 5,
        labels=truth if known else np.full(NUM_IMAGES, -1),
        paths=tuple(f"test/{i}.png" for i in range(NUM_IMAGES)),
        split="test",
        mean=np.full(3, 0.5, np.float32),
        std=np.full(3, 0.25, np.float32),
    )


def changed(source: Evaluation, rows: range) -> np.ndarray:
    """The reference's answers, with another class for some images."""
    logits = source.logits + np.float32(0.25)
    logits[rows] = np.roll(logits[rows], 2, axis=1)
    return logits


def judge(source: Evaluation, candidate: np.ndarray, *, head: str = "single_label") -> StageResult:
    limits = ReducedGateConfig()
    return judge_reduced("precision", source, {"way": candidate}, limits=limits, head=head)


def test_a_large_error_with_the_same_answers_passes_and_is_recorded() -> None:
    source = evaluation()
    result = judge(source, changed(source, range(0)))
    assert result.passed
    assert result.limit is None
    assert result.error == pytest.approx(0.25 / source.logits.std(axis=0).mean())
    assert result.metric is not None
    assert (result.metric["reference"], result.metric["candidate"], result.metric["drop"]) == (0.9, 0.9, 0.0)
    assert result.line().endswith("top-1 100 %  (accuracy 90.00 % against 90.00 % on 200 images)")


def test_one_changed_answer_of_a_hundred_passes_where_it_was_wrong_and_is_refused_where_it_was_right() -> (
    None
):
    source = evaluation()
    assert judge(source, changed(source, range(2))).passed
    result = judge(source, changed(source, range(20, 22)))
    assert not result.passed
    assert result.problem == "accuracy 89.00 % against 90.00 % on 200 images, at most 0.50 allowed"


def test_more_changed_answers_are_refused_whatever_the_accuracy() -> None:
    source = evaluation()
    result = judge(source, changed(source, range(3)))
    assert not result.passed
    assert result.problem == "top-1 agreement 98.50%, at least 99.00% wanted"


@pytest.mark.parametrize(("num_changed", "passes"), [(1, True), (2, False)])
def test_without_known_classes_the_changed_answers_bound_the_drop(num_changed: int, passes: bool) -> None:
    source = evaluation(known=False)
    result = judge(source, changed(source, range(num_changed)))
    assert result.passed == passes
    assert result.metric is not None
    assert result.metric["is_bound"]
    assert result.metric["drop"] == pytest.approx(num_changed / NUM_IMAGES)


def test_what_is_not_finite_has_failed() -> None:
    source = evaluation()
    candidate = source.logits.copy()
    candidate[7, 1] = np.inf
    result = judge(source, candidate)
    assert not result.passed
    assert result.problem == "not a finite number, worst on test/7.png (way)"


def test_evaluation_images_survive_the_journey_and_are_normalised_as_timm_does(tmp_path: Path) -> None:
    source = evaluation()
    source.save(tmp_path / "evaluation.npz")
    loaded = Evaluation.load(tmp_path / "evaluation.npz")
    assert loaded.paths == source.paths
    assert loaded.split == "test"
    chunks = in_chunks(loaded, 64)
    images = np.concatenate([loaded.images(rows) for rows in chunks])
    np.testing.assert_array_equal(images, (source.pixels.astype(np.float32) / 255 - 0.5) / 0.25)
    assert images.dtype == np.float32
    (tmp_path / "evaluation.npz").write_bytes(b"PK")
    with pytest.raises(ExportError, match="does not hold evaluation images"):
        Evaluation.load(tmp_path / "evaluation.npz")
