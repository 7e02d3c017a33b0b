"""The parity rule as arithmetic: what it measures, what it must not be fooled by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.export import parity
from isthmus.export.config import STAGES, GateConfig, Override
from isthmus.export.parity import Measurement, Report, StageResult

GATES = GateConfig()
PATHS = [f"test/{i}.png" for i in range(64)]

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1e-3, 1e3)


def logits(seed: int, *, num_images: int = 20, num_classes: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_images, num_classes)).astype(np.float32)


def judge(reference: np.ndarray, *candidates: np.ndarray, gates: GateConfig = GATES) -> StageResult:
    measurements = [Measurement(what=f"way {i}", candidate=value) for i, value in enumerate(candidates)]
    return parity.judge_logits(
        "saved_model", reference, measurements, gates=gates, head="single_label", paths=PATHS
    )


@given(seeds)
def test_equal_logits_have_no_error(seed: int) -> None:
    reference = logits(seed)
    assert parity.logit_error(reference, reference.copy()) == 0.0
    assert parity.top1_agreement(reference, reference.copy(), tie_margin=0.0) == 1.0


@given(seeds, scales)
def test_the_error_does_not_depend_on_the_scale_of_the_logits(seed: int, scale: float) -> None:
    reference = logits(seed).astype(np.float64)
    candidate = reference + logits(seed + 1) * 1e-3
    assert parity.logit_error(reference * scale, candidate * scale) == pytest.approx(
        parity.logit_error(reference, candidate), rel=1e-6
    )


@given(seeds, st.floats(-100, 100))
def test_the_error_does_not_depend_on_what_all_images_have_in_common(seed: int, offset: float) -> None:
    reference = logits(seed).astype(np.float64)
    candidate = reference + logits(seed + 1)
    assert parity.logit_error(reference + offset, candidate + offset) == pytest.approx(
        parity.logit_error(reference, candidate), rel=1e-6
    )


@given(seeds, st.integers(0, 19), st.integers(0, 6), st.floats(1e-4, 1e2))
def test_one_wrong_number_is_the_error_of_its_image_alone(
    seed: int, image: int, column: int, delta: float
) -> None:
    reference = logits(seed).astype(np.float64)
    candidate = reference.copy()
    candidate[image, column] += delta
    errors = parity.image_errors(reference, candidate)
    assert errors.argmax() == image
    assert errors[image] == pytest.approx(delta / parity.spread(reference), rel=1e-6)
    assert np.count_nonzero(errors) == 1


def test_the_unit_is_the_spread_between_images_not_between_classes() -> None:
    """A net that gives every image nearly the same logits: an absolute tolerance would pass anything."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=7) * 100
    reference = common + 1e-4 * rng.normal(size=(50, 7))
    same_for_all = np.tile(common, (50, 1))
    assert np.abs(reference - same_for_all).max() < 1e-3
    assert parity.logit_error(reference, same_for_all) > 1
    result = judge(reference, same_for_all)
    assert not result.passed


def test_a_reference_that_is_the_same_for_all_images_proves_nothing() -> None:
    reference = np.ones((20, 3), np.float32)
    result = judge(reference, reference.copy())
    assert not result.passed
    assert result.error is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_failed(bad: float) -> None:
    reference = logits(0)
    candidate = reference.copy()
    candidate[3, 1] = bad
    result = judge(reference, candidate)
    assert not result.passed
    assert result.error is None
    assert result.problem == "not a finite number, limit 1.0e-03, worst on test/3.png (way 0)"
    assert not judge(candidate, reference).passed


def test_shapes_that_differ_are_named() -> None:
    result = judge(logits(0), logits(0)[:, :5])
    assert (result.passed, result.problem) == (False, "way 0: shape (20, 5) instead of (20, 7)")
    with pytest.raises(ValueError, match=r"want two arrays \[N, C\], got \(20, 7\) and \(20, 5\)"):
        parity.logit_error(logits(0), logits(0)[:, :5])


def test_the_worst_measurement_counts_and_its_image_is_named() -> None:
    reference = logits(0)
    far = reference.copy()
    far[11] += 0.01
    result = judge(reference, reference.copy(), far)
    assert not result.passed
    assert result.worst[0]["path"] == "test/11.png"
    assert result.worst[0]["measurement"] == "way 1"
    assert [row["error"] == 0.0 for row in result.measurements] == [True, False]


def test_a_measurement_of_some_images_is_judged_by_the_spread_of_all() -> None:
    reference = logits(0)
    rows = [4, 9]
    off = 2 * GATES.logit_error * parity.spread(reference)
    measured = [
        Measurement(what="all", candidate=reference.copy()),
        Measurement(what="two", candidate=reference[rows] + np.float32(off), rows=rows),
    ]
    result = parity.judge_logits(
        "server_rest", reference, measured, gates=GATES, head="single_label", paths=PATHS
    )
    assert result.error == pytest.approx(2 * GATES.logit_error, rel=1e-3)
    assert {row["index"] for row in result.worst[:2]} == set(rows)
    assert [row["num_images"] for row in result.measurements] == [20, 2]


def test_a_tie_has_no_right_answer_and_anything_else_has() -> None:
    reference = np.array([[1.0, 1.0 + 1e-6, 0.0], [3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    flipped_tie = reference[:, [1, 0, 2]] * [[1], [0], [0]] + reference * [[0], [1], [1]]
    assert parity.top1_agreement(reference, flipped_tie, tie_margin=1e-3) == 1.0
    assert parity.top1_agreement(reference, flipped_tie, tie_margin=0.0) == pytest.approx(2 / 3)
    flipped = reference.copy()
    flipped[1] = [0.0, 3.0, 1.0]
    assert parity.top1_agreement(reference, flipped, tie_margin=1e-3) == 0.5


def test_ties_everywhere_are_a_gate_that_could_not_run() -> None:
    reference = np.arange(10.0)[:, None] + np.zeros((10, 3))
    result = judge(reference, reference.copy())
    assert result.error == 0.0
    assert not result.passed
    assert result.top1_agreement is None


def test_top1_fails_a_stage_whose_error_is_within_its_limit() -> None:
    gates = GateConfig(logit_error=1e-1)
    reference = logits(0)
    candidate = reference.copy()
    # Close, but decided: nudge the runner-up past the winner.
    order = reference.argsort(axis=1)
    gap = reference[np.arange(20), order[:, -1]] - reference[np.arange(20), order[:, -2]]
    image = int(gap.argmin())
    candidate[image, order[image, -2]] += gap[image] * 1.01
    result = judge(reference, candidate, gates=gates)
    assert result.error is not None
    assert result.error < 1e-1
    assert result.problem == "top-1 agreement 95.00%, at least 100.00% wanted"


@given(seeds, st.floats(0.1, 30))
def test_log_probabilities_give_the_logits_back(seed: int, scale: float) -> None:
    reference = logits(seed) * np.float32(scale)
    softmax = np.exp(parity.log_softmax(reference)).astype(np.float32)
    comparable = parity.comparable_logits(reference, head="single_label")
    assert parity.logit_error(comparable, parity.recovered_logits(softmax, head="single_label")) < 1e-4


@given(seeds, st.floats(0.1, 30))
def test_sigmoids_give_the_logits_back_as_far_as_float32_holds_them(seed: int, scale: float) -> None:
    reference = logits(seed) * np.float32(scale)
    sigmoids = (1 / (1 + np.exp(-reference.astype(np.float64)))).astype(np.float32)
    comparable = parity.comparable_logits(reference, head="multi_label")
    error = parity.logit_error(comparable, parity.recovered_logits(sigmoids, head="multi_label"))
    assert error < GATES.logit_error


def test_multi_label_agreement_counts_decisions() -> None:
    reference = np.array([[2.0, -1.0], [-2.0, 1e-7], [1.0, -3.0]])
    candidate = np.array([[2.0, -1.0], [-2.0, -1e-7], [-1.0, -3.0]])
    assert parity.decision_agreement(reference, candidate, tie_margin=1e-3) == pytest.approx(4 / 5)


@given(seeds, st.integers(1, 50))
def test_every_differing_pixel_is_counted(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (8, 4, 4, 3), dtype=np.uint8)
    changed = pixels.reshape(-1).copy()
    places = rng.choice(changed.size, count, replace=False)
    changed[places] += 1
    result = parity.judge_pixels(
        pixels, {"one batch": changed.reshape(pixels.shape)}, gates=GATES, paths=PATHS
    )
    assert result.error == count
    assert not result.passed
    assert "by up to 1 levels" in (result.problem or "")
    allowed = GateConfig(differing_pixels=count)
    assert parity.judge_pixels(
        pixels, {"a": changed.reshape(pixels.shape)}, gates=allowed, paths=PATHS
    ).passed


def test_swapped_channels_are_a_failure_of_the_preprocessing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    result = parity.judge_pixels(pixels, {"bgr": pixels[..., ::-1]}, gates=GATES, paths=PATHS)
    assert not result.passed
    assert (result.problem or "").endswith("levels")


def test_pixels_of_another_kind_are_named() -> None:
    pixels = np.zeros((8, 4, 4, 3), np.uint8)
    result = parity.judge_pixels(pixels, {"a": pixels.astype(np.float32)}, gates=GATES, paths=PATHS)
    assert result.problem == "a: float32 (8, 4, 4, 3) instead of uint8 (8, 4, 4, 3)"


def test_nothing_measured_is_a_failure() -> None:
    assert judge(logits(0)).problem == "nothing was measured"
    assert not parity.judge_pixels(np.zeros((8, 4, 4, 3), np.uint8), {}, gates=GATES, paths=PATHS).passed


def test_a_stage_that_never_ran_has_failed() -> None:
    report = Report.of([judge(logits(0), logits(0))], gates=GATES)
    assert [stage.stage for stage in report.stages] == list(STAGES)
    assert not report.passed
    assert {stage.problem for stage in report.failures} == {"it never ran"}


def test_an_override_accepts_its_own_stage_only() -> None:
    report = Report.of([judge(logits(0), logits(0) + 1)], gates=GATES)
    everything = [Override(gate=stage, who="Ada", why="a try") for stage in STAGES]
    assert report.refused_by(everything) == []
    assert [stage.stage for stage in report.refused_by(everything[1:])] == ["onnxruntime"]
    assert not report.passed


def test_a_report_survives_json() -> None:
    import json

    report = Report.of([judge(logits(0), logits(0) + 1), judge(logits(0), logits(0) * np.nan)], gates=GATES)
    again = Report.from_dict(json.loads(json.dumps(report.as_dict(), allow_nan=False)))
    assert again == report


def test_the_lines_that_a_user_reads() -> None:
    reference = logits(0)
    passed = judge(reference, reference + np.float32(1e-6))
    assert passed.line().startswith("torch → SavedModel     ")
    assert passed.line().endswith("(limit 1.0e-03)  top-1 100 %")
    failed = judge(reference, reference + 1)
    assert "FAILED: 1." in failed.line() or "FAILED: 9." in failed.line()
    assert "worst on test/" in failed.line()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"logit_error": 0.0}, "logit_error must be > 0"),
        ({"logit_error": float("nan")}, "logit_error must be > 0"),
        ({"top1_agreement": 1.5}, "a share in"),
        ({"differing_pixels": -1}, "differing_pixels ≥ 0"),
    ],
)
def test_limits_that_mean_nothing_are_refused(arguments: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GateConfig(**arguments)  # type: ignore[arg-type]


def test_an_override_says_who_and_why() -> None:
    with pytest.raises(ValueError, match="override of server_rest: say who decided and why"):
        Override(gate="server_rest", who="Ada", why=" ")
