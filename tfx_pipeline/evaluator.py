"""Evaluator: TFMA on the signature `examples`, against fixed thresholds and, when there is one, the champion.

TFMA measures and holds the whole split to its thresholds; the slices are judged by `slices`, whose rule knows how
many images a slice has. What differs from TFX's own executor: whether there is a champion is known only when the
pipeline runs, so the baseline always arrives as an artifact, and one that holds no model is set aside. (TFMA then
drops the change threshold by itself; with a baseline that is missing for another reason it would do so too,
silently, which is why ChampionResolver fails rather than returning nothing.)

<evaluation>/metrics, validations, …   TFMA's own files
<evaluation>/tally.json                counts by slice, confusion, calibration
<evaluation>/verdict.json              why the model is refused, if it is
<evaluation>/calibration.png, confusion.png
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import constants
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.artifact_utils import get_split_uri
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils, proto_utils

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline import evaluation_plots, evaluation_tally, slices
from isthmus.tfx_pipeline.artifacts import BLESSED, Verdict
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.config import EvaluationGate
from isthmus.tfx_pipeline.evaluation_tally import LABEL_FEATURE, SLICE_FEATURES, Tally
from isthmus.tfx_pipeline.model_artifact import manifest_of
from isthmus.tfx_pipeline.slices import Slice

ACCURACY = "sparse_categorical_accuracy"
PLOTS = ("calibration.png", "confusion.png")
_TALLY = "tally.json"


def eval_config(gate: EvaluationGate) -> config_pb2.EvalConfig:
    """TFMA's configuration: accuracy and number of images, over the whole split and within every slice.

    A plain `MetricConfig.threshold` would gate every slice. The overall one is therefore a per-slice threshold
    with an empty SlicingSpec.
    """
    whole = config_pb2.SlicingSpec()
    threshold = config_pb2.PerSliceMetricThreshold(
        slicing_specs=[whole],
        threshold=config_pb2.MetricThreshold(
            value_threshold=config_pb2.GenericValueThreshold(lower_bound={"value": gate.min_accuracy}),
            change_threshold=config_pb2.GenericChangeThreshold(
                direction=config_pb2.MetricDirection.HIGHER_IS_BETTER,
                absolute={"value": -gate.max_accuracy_drop},
            ),
        ),
    )
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(
                signature_name="examples", label_key=LABEL_FEATURE, prediction_key="probabilities"
            )
        ],
        slicing_specs=[
            whole,
            *(config_pb2.SlicingSpec(feature_keys=[feature]) for feature in SLICE_FEATURES.values()),
        ],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    config_pb2.MetricConfig(
                        class_name="SparseCategoricalAccuracy",
                        config=json.dumps({"name": ACCURACY}),
                        per_slice_thresholds=[threshold],
                    ),
                ]
            )
        ],
    )


@dataclass(kw_only=True, frozen=True)
class Evaluation:
    """The numbers of an evaluation, read back from its files."""

    whole: Slice
    """The whole split."""

    slices: tuple[Slice, ...]
    """Every class, size and brightness that occurs."""

    calibration_error: float
    """Expected calibration error, see `Tally`."""

    confidence: float
    """Of the intervals."""

    num_too_small: int
    """Slices that were not judged, for their size."""

    @property
    def accuracy(self) -> float:
        """Share of right answers over the whole split."""
        return self.whole.accuracy

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracking server; `accuracy/label:<class>` has always been called that."""
        low, high = self.whole.accuracy_interval(self.confidence)
        flat = {
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "num_images": float(self.whole.num_images),
            "calibration_error": self.calibration_error,
        }
        for one in self.slices:
            kind = "label" if one.kind == "class" else one.kind
            flat[f"accuracy/{kind}:{one.value}"] = one.accuracy
        if self.whole.change is not None:
            flat["accuracy_change"] = self.whole.change
            flat["accuracy_change_low"], flat["accuracy_change_high"] = self.whole.change_interval(
                self.confidence
            )
        return flat


def read_evaluation(evaluation: types.Artifact) -> Evaluation:
    """Read the numbers of the candidate."""
    tally = Tally.read(os.path.join(evaluation.uri, _TALLY))
    details = Verdict.read(evaluation).details
    return Evaluation(
        whole=tally.whole,
        slices=tuple(tally.slices[1:]),
        calibration_error=tally.calibration_error,
        confidence=details["confidence"],
        num_too_small=details["num_too_small"],
    )


def refusals(evaluation: types.Artifact) -> list[str]:
    """Why the model is refused, one sentence per threshold; empty when it is not."""
    return Verdict.read(evaluation).reasons


def _refusals_of_tfma(output_path: str, whole: Slice, confidence: float) -> list[str]:
    """What TFMA's own validation says about the whole split."""
    result = tfma.load_validation_result(output_path)
    if result.validation_ok:
        return []
    reasons = [
        _sentence(failure, whole, confidence)
        for validation in result.metric_validations_per_slice
        for failure in validation.failures
    ]
    return reasons or ["the model was not validated, and TFMA does not say why"]


def _sentence(failure: Any, whole: Slice, confidence: float) -> str:
    threshold = failure.metric_threshold
    if failure.metric_key.is_diff:
        allowed = -threshold.change_threshold.absolute.value
        low, high = whole.change_interval(confidence)
        return (
            f"accuracy on {whole.where()} is {-failure.metric_value.double_value.value:.4f} lower than the "
            f"champion's ({confidence:.0%} interval {-high:.4f} to {-low:.4f}, n = {whole.num_images}), "
            f"at most {allowed:g} is allowed"
        )
    if failure.metric_value.WhichOneof("type") != "double_value":
        return f"{failure.metric_key.name} on {whole.where()} could not be measured: {failure.message}"
    low, high = whole.accuracy_interval(confidence)
    return (
        f"accuracy on {whole.where()} is {failure.metric_value.double_value.value:.4f} "
        f"({confidence:.0%} interval {low:.4f} to {high:.4f}, n = {whole.num_images}), "
        f"at least {threshold.value_threshold.lower_bound.value:g} is wanted"
    )


class Executor(base_beam_executor.BaseBeamExecutor):
    """Evaluates the candidate and, where there is one, the champion in one pass; writes the blessing."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write TFMA's files, the tally, the plots, the verdict and TFX's blessing."""
        gate = EvaluationGate(**json.loads(exec_properties["gate"]))
        (evaluation,), (blessing,) = output_dict["evaluation"], output_dict["blessing"]
        (model,), (baseline,) = input_dict["model"], input_dict["baseline_model"]
        models = {"": model}
        if baseline.get_int_custom_property(HAS_MODEL):
            models = {tfma.CANDIDATE_KEY: model, tfma.BASELINE_KEY: baseline}
        self._evaluate(models, input_dict["examples"], evaluation.uri, exec_properties, gate)
        tally = Tally.read(os.path.join(evaluation.uri, _TALLY))
        reasons = _refusals_of_tfma(evaluation.uri, tally.whole, gate.confidence)
        reasons += slices.refusals(tally.slices, gate)
        num_too_small = len(slices.too_small(tally.slices, gate))
        Verdict(
            passed=not reasons,
            summary=f"accuracy {slices.measured(tally.whole, gate.confidence)}",
            reasons=reasons,
            details={
                "confidence": gate.confidence,
                "num_too_small": num_too_small,
                "calibration_error": tally.calibration_error,
            },
        ).write(evaluation)
        manifest = manifest_of(model)
        title = f"{manifest['name']}, {manifest['model']['name']}"
        calibration, confusion = (os.path.join(evaluation.uri, plot) for plot in PLOTS)
        evaluation_plots.draw_calibration(tally, calibration, title=title)
        evaluation_plots.draw_confusion(tally, confusion, title=title, labels=manifest["model"]["labels"])
        _bless(blessing, models, passed=not reasons)

    def _evaluate(
        self,
        models: dict[str, types.Artifact],
        examples: list[types.Artifact],
        target: str,
        exec_properties: dict[str, Any],
        gate: EvaluationGate,
    ) -> None:
        """Run TFMA, with our extractors among its own."""
        config = tfma.EvalConfig()
        proto_utils.json_to_proto(exec_properties["eval_config"], config)
        config = tfma.utils.update_eval_config_with_defaults(
            config, has_baseline=len(models) > 1, rubber_stamp=True
        )
        tfma.utils.verify_eval_config(config)
        shared = [
            tfma.default_eval_shared_model(
                eval_saved_model_path=path_utils.serving_model_path(artifact.uri),
                model_name=name,
                eval_config=config,
            )
            for name, artifact in models.items()
        ]
        either = shared if len(shared) > 1 else shared[0]
        edges = {"size": list(gate.size_edges), "brightness": list(gate.brightness_edges)}
        extractors = evaluation_tally.extractors(
            tfma.default_extractors(eval_shared_model=either, eval_config=config),
            edges=edges,
            target=os.path.join(target, _TALLY),
        )
        read = tfxio_utils.get_tfxio_factory_from_artifact(
            examples=examples,
            telemetry_descriptors=["Evaluator"],
            raw_record_column_name=tfma.constants.ARROW_INPUT_COLUMN,
        )
        with self._make_beam_pipeline() as pipeline:
            read_splits = [
                pipeline
                | f"Read[{split}]"
                >> read(io_utils.all_files_pattern(get_split_uri(examples, split))).BeamSource()
                for split in json.loads(exec_properties["example_splits"])
            ]
            _ = (
                read_splits
                | "Flatten" >> beam.Flatten()
                | "Evaluate"
                >> tfma.ExtractEvaluateAndWriteResults(
                    eval_shared_model=either, eval_config=config, extractors=extractors, output_path=target
                )
            )


def _bless(blessing: types.Artifact, models: dict[str, types.Artifact], *, passed: bool) -> None:
    """Leave the blessing as TFX's own Evaluator does, for whoever reads it as TFX does."""
    candidate = next(iter(models.values()))
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, candidate.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, candidate.id)
    if baseline := models.get(tfma.BASELINE_KEY):
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
    name = constants.BLESSED_FILE_NAME if passed else constants.NOT_BLESSED_FILE_NAME
    io_utils.write_string_file(os.path.join(blessing.uri, name), "")
    blessing.set_int_custom_property(BLESSED, int(passed))


class EvaluatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Evaluator; the names are TFX's."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "eval_config": ExecutionParameter(type=config_pb2.EvalConfig),
        "example_splits": ExecutionParameter(type=str),
        "gate": ExecutionParameter(type=str),
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
                gate=canonical_json(asdict(gate)),
                code=code,
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )
