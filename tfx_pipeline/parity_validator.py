"""ParityValidator: is the imported SavedModel, in the pipeline's own runtime, still torch's model?

Three measurements against torch's recorded logits, on real images: `tensors` from preprocessed images,
`serving_default` from encoded bytes, and `examples` on those records of the evaluation split that the
reference covers. The last one also says that the pipeline evaluates on the very images that torch saw, and of
those there must be enough (`pipeline.parity.min_evaluation_images`). Where that is 0 and the reference covers none,
`examples` is asked with records made of the reference's own bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.artifact_utils import get_split_uri
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.export import parity
from isthmus.export.config import GateConfig, Stage
from isthmus.export.reference import Reference
from isthmus.tfx_pipeline.artifacts import ParityReport, Verdict
from isthmus.tfx_pipeline.model_artifact import (
    broken_files,
    gates_of,
    manifest_of,
    reference_of,
    saved_model_of,
)

_BATCH_SIZES = (1, 3, 16)


def measure(
    saved_model: Path,
    reference: Reference,
    records: dict[int, bytes],
    *,
    gates: GateConfig,
    manifest: dict[str, Any],
) -> list[parity.StageResult]:
    """Load the SavedModel with the runtime's default settings and compare its answers with torch's.

    Args:
        saved_model: The SavedModel directory.
        reference: N images and torch's logits for them.
        records: {index into the reference: serialized tf.train.Example of the evaluation split}.
        gates: The limits.
        manifest: The bundle's manifest, for the head and the labels.

    Returns:
        One result for `tensors`, one for everything that starts at encoded bytes.
    """
    loaded = tf.saved_model.load(str(saved_model))
    head, labels = manifest["model"]["head"], manifest["model"]["labels"]
    measured: dict[Stage, list[parity.Measurement]] = {
        "saved_model": _from_tensors(loaded, reference),
        "end_to_end": [
            *_from_bytes(loaded, reference, head=head, labels=labels),
            _from_records(loaded, reference, records),
        ],
    }
    return [
        parity.judge_logits(
            stage, reference.logits, measurements, gates=gates, head=head, paths=reference.paths
        )
        for stage, measurements in measured.items()
    ]


def _from_tensors(loaded: Any, reference: Reference) -> list[parity.Measurement]:
    def call(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = loaded.signatures["tensors"](images=tf.constant(images))["logits"].numpy()
        return logits

    return [
        parity.Measurement(what=f"tensors, batch {size}", candidate=_in_batches(call, reference.images, size))
        for size in _BATCH_SIZES
    ]


def _from_bytes(
    loaded: Any, reference: Reference, *, head: str, labels: list[str]
) -> list[parity.Measurement]:
    answers = loaded.signatures["serving_default"](image_bytes=tf.constant(list(reference.encoded)))
    return [
        parity.Measurement(
            what="serving_default",
            candidate=parity.recovered_logits(answers["probabilities"].numpy(), head=head),
            reference=parity.comparable_logits(reference.logits, head=head),
            inconsistent=inconsistent_answer(
                answers["class_id"].numpy(), answers["label"].numpy(), labels=labels
            ),
        )
    ]


def _from_records(loaded: Any, reference: Reference, records: dict[int, bytes]) -> parity.Measurement:
    what = f"examples, {len(records)} records of the evaluation split"
    if not records:
        records = {index: record_of(encoded) for index, encoded in enumerate(reference.encoded)}
        what = f"examples, made of the {len(records)} reference images"
    covered = sorted(records)
    answers = loaded.signatures["examples"](examples=tf.constant([records[index] for index in covered]))
    # judge_logits compares whole references: the images that no record covers keep torch's own answer.
    candidate = np.array(reference.logits)
    candidate[covered] = answers["logits"].numpy()
    return parity.Measurement(what=what, candidate=candidate)


def _in_batches(call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([call(images[start : start + size]) for start in range(0, len(images), size)])


def record_of(encoded: bytes) -> bytes:
    """The least that the signature `examples` takes: a serialized tf.train.Example of the file's bytes alone."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    example: bytes = tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": feature})
    ).SerializeToString(deterministic=True)
    return example


def inconsistent_answer(class_ids: np.ndarray, answered: np.ndarray, *, labels: list[str]) -> str | None:
    """What is wrong with the labels that go with class ids int64 [N], if anything is."""
    for class_id, label in zip(class_ids.tolist(), answered.tolist(), strict=True):
        text = label.decode() if isinstance(label, bytes) else label
        if not 0 <= class_id < len(labels) or labels[class_id] != text:
            return f"class_id {class_id} is answered with the label {text!r}"
    return None


def covering_records(
    examples: types.Artifact, split: str, reference: Reference
) -> tuple[dict[int, bytes], list[str]]:
    """The split's records that hold a reference image, by its index, and the paths whose bytes differ.

    Images are known by their bytes: a file may have been renamed, or have gone to another split under its name.
    """
    by_bytes = {encoded: index for index, encoded in enumerate(reference.encoded)}
    by_path = dict(zip(reference.paths, reference.encoded, strict=True))
    files = tf.io.gfile.glob(get_split_uri([examples], split) + "/*")
    records, differing = {}, []
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        encoded = features["image/encoded"].bytes_list.value[0]
        path = features["image/filename"].bytes_list.value[0].decode()
        index = by_bytes.get(encoded)
        if index is not None:
            records[index] = record
        elif path in by_path:
            differing.append(path)
    return records, differing


def _uncovered(num_covered: int, num_reference: int, exec_properties: dict[str, Any]) -> list[str]:
    """The reason against a model that was measured on too few images of the evaluation split."""
    wanted = min(exec_properties["min_evaluation_images"], num_reference)
    if num_covered >= wanted:
        return []
    return [
        f"only {num_covered} of the {num_reference} images that torch answered for are in the evaluation split "
        f"{exec_properties['evaluation_split']}, at least {wanted} are wanted; export with reference images of it "
        "(export.reference_split, or --images), or lower pipeline.parity.min_evaluation_images"
    ]


class Executor(base_executor.BaseExecutor):
    """Writes the verdict. Raises when it cannot measure; a model that is merely wrong is a verdict."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Measure and write `verdict.json` and the property `blessed`."""
        (report,) = output_dict["parity"]
        self._verdict(input_dict["model"][0], input_dict["examples"][0], exec_properties).write(report)

    def _verdict(
        self, model: types.Artifact, examples: types.Artifact, exec_properties: dict[str, Any]
    ) -> Verdict:
        manifest, reference = manifest_of(model), reference_of(model)
        if broken := broken_files(model):
            return Verdict(passed=False, summary="damaged", reasons=broken)
        records, differing = covering_records(examples, exec_properties["evaluation_split"], reference)
        gates = gates_of(
            manifest,
            logit_error=exec_properties["logit_error"],
            top1_agreement=exec_properties["top1_agreement"],
        )
        limit = (
            f"top-1 ≥ {gates.top1_agreement:.2%}" if gates.logit_error is None else f"{gates.logit_error:.0e}"
        )
        results = measure(saved_model_of(model), reference, records, gates=gates, manifest=manifest)
        reasons = [f"{result.title}: {result.problem}" for result in results if not result.passed]
        if differing:
            reasons.append(f"{differing[0]} is no longer the image that torch saw ({len(differing)} such)")
        reasons += _uncovered(len(records), len(reference), exec_properties)
        errors = [result.error for result in results if result.error is not None]
        worst = f"{max(errors):.1e}" if len(errors) == len(results) else "not finite"
        return Verdict(
            passed=not reasons,
            summary=f"error {worst} (limit {limit}) on {len(reference)} images, "
            f"{len(records)} of them in the evaluation split",
            reasons=reasons,
            details={
                "stages": [result.as_dict() for result in results],
                "num_images": len(reference),
                "num_covered": len(records),
                "error": max(errors) if errors else None,
            },
        )


class ParityValidatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of ParityValidator."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "evaluation_split": ExecutionParameter(type=str),
        "logit_error": ExecutionParameter(type=float),
        "top1_agreement": ExecutionParameter(type=float),
        "min_evaluation_images": ExecutionParameter(type=int),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=standard_artifacts.Model),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {"parity": ChannelParameter(type=ParityReport)}  # noqa: RUF012


class ParityValidator(base_component.BaseComponent):
    """Gate: the SavedModel answers as torch did."""

    SPEC_CLASS = ParityValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        evaluation_split: str,
        logit_error: float,
        top1_agreement: float,
        min_evaluation_images: int,
        code: str,
    ) -> None:
        """Describe one run; the limits are those of `config.ParityGate`."""
        super().__init__(
            ParityValidatorSpec(
                model=model,
                examples=examples,
                evaluation_split=evaluation_split,
                logit_error=logit_error,
                top1_agreement=top1_agreement,
                min_evaluation_images=min_evaluation_images,
                code=code,
                parity=types.Channel(type=ParityReport),
            )
        )
