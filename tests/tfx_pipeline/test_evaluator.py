"""Evaluator: thresholds as TFMA reads them, and real evaluations with and without a champion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tensorflow_model_analysis as tfma
from google.protobuf import json_format
from tfx.types import standard_artifacts

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline import evaluator
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.config import EvaluationGate

Evaluate = Callable[..., tuple[Any, Any]]


@pytest.fixture
def evaluate(
    execute: Callable[..., None], artifact_at: Callable[..., Any], examples: Any, tmp_path: Path
) -> Evaluate:
    """Run the component; returns the evaluation and the blessing."""

    def run(model: Any, gate: EvaluationGate, champion: Any = None) -> tuple[Any, Any]:
        baseline = champion or artifact_at(standard_artifacts.Model, tmp_path / "no champion")
        baseline.set_int_custom_property(HAS_MODEL, int(champion is not None))
        outputs = {
            "evaluation": artifact_at(standard_artifacts.ModelEvaluation, tmp_path / "evaluation"),
            "blessing": artifact_at(standard_artifacts.ModelBlessing, tmp_path / "blessing"),
        }
        execute(
            evaluator.Executor,
            inputs={"examples": examples, "model": model, "baseline_model": baseline},
            outputs=outputs,
            properties={
                "eval_config": json_format.MessageToJson(evaluator.eval_config(gate)),
                "example_splits": '["test"]',
                "gate": canonical_json(asdict(gate)),
            },
        )
        return outputs["evaluation"], outputs["blessing"]

    return run


def test_overall_threshold_is_not_the_classes_threshold() -> None:
    config = evaluator.eval_config(EvaluationGate(min_accuracy=0.9, max_accuracy_drop=0.01))
    metric = config.metrics_specs[0].metrics[1]
    assert not metric.HasField("threshold")
    (overall,) = metric.per_slice_thresholds
    assert len(overall.slicing_specs) == 1
    assert not overall.slicing_specs[0].feature_keys
    assert overall.threshold.value_threshold.lower_bound.value == 0.9
    assert overall.threshold.change_threshold.absolute.value == -0.01
    assert config.model_specs[0].signature_name == "examples"


def test_slices_are_what_tfma_slices_by() -> None:
    specs = evaluator.eval_config(EvaluationGate()).slicing_specs
    assert [list(spec.feature_keys) for spec in specs] == [
        [],
        ["image/class/text"],
        ["isthmus/slice/size"],
        ["isthmus/slice/brightness"],
    ]


def test_a_good_model_without_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    gate = EvaluationGate(min_accuracy=0.9, min_class_accuracy=0.9, min_slice_images=10)
    evaluation, blessing = evaluate(make_model(), gate)
    assert evaluator.refusals(evaluation) == []
    assert blessing.get_int_custom_property("blessed") == 1
    assert Path(blessing.uri, "BLESSED").is_file()
    found = evaluator.read_evaluation(evaluation)
    assert (found.accuracy, found.whole.num_images, found.whole.change) == (1.0, 30, None)
    assert [(one.kind, one.value, one.num_images) for one in found.slices] == [
        ("class", "blue", 10),
        ("class", "green", 10),
        ("class", "red", 10),
        ("size", "0-31", 30),
        ("brightness", "64-127", 30),
    ]
    metrics = found.metrics()
    assert metrics["accuracy/label:red"] == metrics["accuracy/size:0-31"] == 1.0
    assert metrics["accuracy_low"] == pytest.approx(0.8865, abs=1e-4)
    assert "accuracy_change" not in metrics
    for plot in evaluator.PLOTS:
        assert Path(evaluation.uri, plot).read_bytes().startswith(b"\x89PNG")


def test_a_bad_model_is_refused_overall_and_by_slice(
    make_model: Callable[..., Any], evaluate: Evaluate
) -> None:
    gate = EvaluationGate(
        min_accuracy=0.9, min_class_accuracy=0.5, min_brightness_accuracy=0.6, min_slice_images=10
    )
    evaluation, blessing = evaluate(make_model(quality="bad"), gate)
    assert blessing.get_int_custom_property("blessed") == 0
    assert Path(blessing.uri, "NOT_BLESSED").is_file()
    assert evaluator.refusals(evaluation) == [
        "accuracy on the whole split is 0.3333 (95% interval 0.1923 to 0.5122, n = 30), at least 0.9 is wanted",
        "accuracy on class blue is 0.0000 (95% interval 0.0000 to 0.2775, n = 10), at least 0.5 is wanted",
        "accuracy on class green is 0.0000 (95% interval 0.0000 to 0.2775, n = 10), at least 0.5 is wanted",
        "accuracy on brightness 64-127 of 255 is 0.3333 (95% interval 0.1923 to 0.5122, n = 30), "
        "at least 0.6 is wanted",
    ]


def test_good_overall_and_slices_too_small_to_judge(
    make_model: Callable[..., Any], evaluate: Evaluate
) -> None:
    """The class threshold could not be held against anything: that is no pass."""
    evaluation, blessing = evaluate(make_model(), EvaluationGate(min_class_accuracy=0.5))
    assert blessing.get_int_custom_property("blessed") == 0
    assert evaluator.refusals(evaluation) == [
        "accuracy by class cannot be judged: no class has 30 images or more"
    ]
    assert evaluator.read_evaluation(evaluation).num_too_small == 3


def test_a_model_worse_than_the_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    """Good enough by the fixed threshold, and still refused."""
    gate = EvaluationGate(min_accuracy=0.2, max_accuracy_drop=0.05, max_slice_accuracy_drop=0.3)
    evaluation, blessing = evaluate(make_model(quality="bad"), gate, champion=make_model())
    assert blessing.get_int_custom_property("blessed") == 0
    first, *by_slice = evaluator.refusals(evaluation)
    assert first == (
        "accuracy on the whole split is 0.6667 lower than the champion's "
        "(95% interval 0.4464 to 0.8036, n = 30), at most 0.05 is allowed"
    )
    assert [text.split(" is ")[0] for text in by_slice] == [
        "accuracy on size 0-31 pixels",
        "accuracy on brightness 64-127 of 255",
    ]
    found = evaluator.read_evaluation(evaluation)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.whole.change == pytest.approx(-2 / 3)
    assert found.metrics()["accuracy_change_high"] < -0.3
    # Two counts of the same thing: TFMA's own, and the tally's.
    (overall,) = [row for row in tfma.load_metrics(evaluation.uri) if not row.slice_key.single_slice_keys]
    measured = {
        (pair.key.model_name, pair.key.is_diff): pair.value.double_value.value
        for pair in overall.metric_keys_and_values
        if pair.key.name == evaluator.ACCURACY
    }
    assert measured["candidate", False] == pytest.approx(found.accuracy)
    assert measured["candidate", True] == pytest.approx(found.whole.change)


def test_a_model_better_than_the_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    evaluation, blessing = evaluate(make_model(), EvaluationGate(), champion=make_model(quality="bad"))
    assert evaluator.refusals(evaluation) == []
    assert blessing.get_int_custom_property("blessed") == 1
    assert evaluator.read_evaluation(evaluation).whole.change == pytest.approx(2 / 3)
