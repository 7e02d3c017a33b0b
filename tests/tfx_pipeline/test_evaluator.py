"""Evaluator: thresholds as TFMA reads them, and real evaluations with and without a champion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tfx.types import standard_artifacts

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


def test_class_threshold_only_where_asked_for() -> None:
    config = evaluator.eval_config(EvaluationGate(min_class_accuracy=0.8))
    _, per_class = config.metrics_specs[0].metrics[1].per_slice_thresholds
    assert list(per_class.slicing_specs[0].feature_keys) == ["image/class/text"]
    assert not per_class.threshold.HasField("change_threshold")


def test_a_good_model_without_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    evaluation, blessing = evaluate(make_model(), EvaluationGate(min_accuracy=0.9, min_class_accuracy=0.9))
    assert evaluator.refusals(evaluation) == []
    assert blessing.get_int_custom_property("blessed") == 1
    found = evaluator.read_evaluation(evaluation)
    assert found == evaluator.Evaluation(
        accuracy=1.0,
        num_images=30,
        class_accuracy={"blue": 1.0, "green": 1.0, "red": 1.0},
        accuracy_change=None,
    )
    assert found.metrics()["accuracy/label:red"] == 1.0
    assert "accuracy_change" not in found.metrics()


def test_a_bad_model_is_refused_overall_and_by_class(
    make_model: Callable[..., Any], evaluate: Evaluate
) -> None:
    gate = EvaluationGate(min_accuracy=0.9, min_class_accuracy=0.5)
    evaluation, blessing = evaluate(make_model(quality="bad"), gate)
    assert blessing.get_int_custom_property("blessed") == 0
    assert sorted(evaluator.refusals(evaluation)) == [
        "accuracy on class blue is 0.0000, at least 0.5 is wanted",
        "accuracy on class green is 0.0000, at least 0.5 is wanted",
        "accuracy on the whole split is 0.3333, at least 0.9 is wanted",
    ]


def test_a_model_worse_than_the_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    """Good enough by the fixed threshold, and still refused."""
    gate = EvaluationGate(min_accuracy=0.2, max_accuracy_drop=0.05)
    evaluation, blessing = evaluate(make_model(quality="bad"), gate, champion=make_model())
    assert blessing.get_int_custom_property("blessed") == 0
    assert evaluator.refusals(evaluation) == [
        "accuracy on the whole split is 0.6667 lower than the champion's, at most 0.05 is allowed"
    ]
    found = evaluator.read_evaluation(evaluation)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.accuracy_change == pytest.approx(-2 / 3)


def test_a_model_better_than_the_champion(make_model: Callable[..., Any], evaluate: Evaluate) -> None:
    evaluation, blessing = evaluate(make_model(), EvaluationGate(), champion=make_model(quality="bad"))
    assert evaluator.refusals(evaluation) == []
    assert blessing.get_int_custom_property("blessed") == 1
    assert evaluator.read_evaluation(evaluation).accuracy_change == pytest.approx(2 / 3)
