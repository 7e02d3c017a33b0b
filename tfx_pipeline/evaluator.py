"""Evaluator: TFMA on the signature `examples`, against fixed thresholds and, when there is one, the champion.

TFX's own executor does the work. Ours differs in one thing: whether there is a champion is known only when the
pipeline runs, so the baseline always arrives as an artifact, and one that holds no model is set aside. (TFMA then
drops the change threshold by itself; with a baseline that is missing for another reason it would do so too,
silently, which is why ChampionResolver fails rather than returning nothing.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import executor as tfx_evaluator
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.config import EvaluationGate

ACCURACY = "sparse_categorical_accuracy"
LABEL_FEATURE = "image/class/label"
CLASS_FEATURE = "image/class/text"


def eval_config(gate: EvaluationGate) -> config_pb2.EvalConfig:
    """TFMA's configuration: accuracy and number of images, over the whole split and within every class.

    A plain `MetricConfig.threshold` would gate every slice. The overall one is therefore a per-slice threshold
    with an empty SlicingSpec, and the classes have one of their own only where it was asked for.
    """
    whole = config_pb2.SlicingSpec()
    per_class = config_pb2.SlicingSpec(feature_keys=[CLASS_FEATURE])
    thresholds = [
        config_pb2.PerSliceMetricThreshold(
            slicing_specs=[whole],
            threshold=config_pb2.MetricThreshold(
                value_threshold=config_pb2.GenericValueThreshold(lower_bound={"value": gate.min_accuracy}),
                change_threshold=config_pb2.GenericChangeThreshold(
                    direction=config_pb2.MetricDirection.HIGHER_IS_BETTER,
                    absolute={"value": -gate.max_accuracy_drop},
                ),
            ),
        )
    ]
    if gate.min_class_accuracy is not None:
        thresholds.append(
            config_pb2.PerSliceMetricThreshold(
                slicing_specs=[per_class],
                threshold=config_pb2.MetricThreshold(
                    value_threshold=config_pb2.GenericValueThreshold(
                        lower_bound={"value": gate.min_class_accuracy}
                    )
                ),
            )
        )
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(
                signature_name="examples", label_key=LABEL_FEATURE, prediction_key="probabilities"
            )
        ],
        slicing_specs=[whole, per_class],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    config_pb2.MetricConfig(
                        class_name="SparseCategoricalAccuracy",
                        config=json.dumps({"name": ACCURACY}),
                        per_slice_thresholds=thresholds,
                    ),
                ]
            )
        ],
    )


@dataclass(kw_only=True, frozen=True)
class Evaluation:
    """The numbers of an evaluation, read back from TFMA's files."""

    accuracy: float
    """Share of right answers over the whole split."""

    num_images: int
    """Images in the split."""

    class_accuracy: dict[str, float]
    """{class: share of right answers within it}."""

    accuracy_change: float | None
    """Accuracy minus the champion's on the same images; None when there was no champion."""

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracking server."""
        flat = {"accuracy": self.accuracy, "num_images": float(self.num_images)}
        flat |= {f"accuracy/label:{label}": value for label, value in self.class_accuracy.items()}
        if self.accuracy_change is not None:
            flat["accuracy_change"] = self.accuracy_change
        return flat


def read_evaluation(evaluation: types.Artifact) -> Evaluation:
    """Read the metrics of the candidate. `slice_key == ()` is the overall row.

    Raises:
        ValueError: There is no overall row: the evaluation saw no image.
    """
    overall: dict[str, float] = {}
    change = None
    by_class = {}
    for metrics in tfma.load_metrics(evaluation.uri):
        values = {}
        for pair in metrics.metric_keys_and_values:
            kind = pair.value.WhichOneof("type")
            if kind != "double_value" or pair.key.model_name not in ("", tfma.CANDIDATE_KEY):
                continue
            if pair.key.is_diff:
                if pair.key.name == ACCURACY and not metrics.slice_key.single_slice_keys:
                    change = pair.value.double_value.value
            else:
                values[pair.key.name] = pair.value.double_value.value
        slices = metrics.slice_key.single_slice_keys
        if not slices:
            overall = values
        elif slices[0].column == CLASS_FEATURE:
            by_class[slices[0].bytes_value.decode()] = values[ACCURACY]
    if ACCURACY not in overall:
        raise ValueError(f"no overall metrics in {evaluation.uri}")
    return Evaluation(
        accuracy=overall[ACCURACY],
        num_images=round(overall["example_count"]),
        class_accuracy=dict(sorted(by_class.items())),
        accuracy_change=change,
    )


def refusals(evaluation: types.Artifact) -> list[str]:
    """Why TFMA did not validate the model, one sentence per threshold; empty when it did."""
    result = tfma.load_validation_result(evaluation.uri)
    if result.validation_ok:
        return []
    reasons = []
    for validation in result.metric_validations_per_slice:
        where = " and ".join(
            f"class {key.bytes_value.decode()}" for key in validation.slice_key.single_slice_keys
        )
        reasons += [_sentence(failure, where or "the whole split") for failure in validation.failures]
    missing = [*result.missing_slices, *result.missing_cross_slices]
    if missing:
        reasons.append(f"{len(missing)} of the slices that have a threshold were not in the data")
    return reasons or ["the model was not validated, and TFMA does not say why"]


def _sentence(failure: Any, where: str) -> str:
    value = failure.metric_value.double_value.value
    threshold = failure.metric_threshold
    if failure.metric_key.is_diff:
        allowed = -threshold.change_threshold.absolute.value
        return (
            f"accuracy on {where} is {-value:.4f} lower than the champion's, at most {allowed:g} is allowed"
        )
    if failure.metric_value.WhichOneof("type") != "double_value":
        return f"{failure.metric_key.name} on {where} could not be measured: {failure.message}"
    wanted = threshold.value_threshold.lower_bound.value
    return f"accuracy on {where} is {value:.4f}, at least {wanted:g} is wanted"


class Executor(tfx_evaluator.Executor):
    """TFX's Evaluator, with the baseline set aside when it holds no model."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Evaluate and write the metrics and the blessing."""
        inputs = dict(input_dict)
        if not inputs["baseline_model"][0].get_int_custom_property(HAS_MODEL):
            del inputs["baseline_model"]
        super().Do(inputs, output_dict, exec_properties)


class EvaluatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Evaluator; the names are TFX's."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "eval_config": ExecutionParameter(type=config_pb2.EvalConfig),
        "example_splits": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "baseline_model": ChannelParameter(type=standard_artifacts.Model),
    }
    OUTPUTS = {  # noqa: RUF012
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_beam_component.BaseBeamComponent):
    """Gate: the model is good enough, and not worse than the champion."""

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel,
        evaluation_split: str,
        gate: EvaluationGate,
        code: str,
    ) -> None:
        """Describe one run.

        Args:
            examples: What to evaluate on.
            model: The candidate.
            baseline_model: ChampionResolver's output.
            evaluation_split: The split of `examples` to use.
            gate: The thresholds.
            code: Digest of this package's code; for the cache.
        """
        super().__init__(
            EvaluatorSpec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                eval_config=eval_config(gate),
                example_splits=json.dumps([evaluation_split]),
                code=code,
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )
