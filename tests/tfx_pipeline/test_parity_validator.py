"""ParityValidator: the right model passes, every kind of wrong one is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from isthmus.export.config import ExportConfig, GateConfig
from isthmus.export.parity import TITLES
from isthmus.tfx_pipeline import parity_validator
from isthmus.tfx_pipeline.artifacts import ParityReport, Verdict
from isthmus.tfx_pipeline.model_artifact import gates_of, manifest_of, reference_of, saved_model_of

Validate = Callable[..., Verdict]


@pytest.fixture
def validate(
    execute: Callable[..., None], artifact_at: Callable[..., Any], examples: Any, tmp_path: Path
) -> Validate:
    """Run the component on a model; examples and split may be others."""

    def run(model: Any, *, examples: Any = examples, split: str = "test", wanted: int = 16) -> Verdict:
        report = artifact_at(ParityReport, tmp_path / "parity")
        execute(
            parity_validator.Executor,
            inputs={"model": model, "examples": examples},
            outputs={"parity": report},
            properties={
                "evaluation_split": split,
                "logit_error": 1e-3,
                "top1_agreement": 1.0,
                "min_evaluation_images": wanted,
            },
        )
        verdict = Verdict.read(report)
        assert report.get_int_custom_property("blessed") == int(verdict.passed)
        return verdict

    return run


def test_the_right_model(make_model: Callable[..., Any], validate: Validate) -> None:
    verdict = validate(make_model())
    assert verdict.passed
    assert verdict.reasons == []
    assert verdict.details["error"] < 1e-5
    assert verdict.details["num_covered"] == verdict.details["num_images"] == 15
    measured = {row["what"] for stage in verdict.details["stages"] for row in stage["measurements"]}
    assert measured == {
        "tensors, batch 1",
        "tensors, batch 3",
        "tensors, batch 16",
        "serving_default",
        "examples, 15 records of the evaluation split",
    }


def test_swapped_channels(make_model: Callable[..., Any], validate: Validate) -> None:
    verdict = validate(make_model(fault="swapped channels"))
    assert not verdict.passed
    assert len(verdict.reasons) == 2
    assert verdict.reasons[0].startswith(TITLES["saved_model"] + ": ")
    assert "limit 1.0e-03, worst on test/" in verdict.reasons[0]


def test_wrong_normalisation_is_seen_from_encoded_images(
    make_model: Callable[..., Any], validate: Validate
) -> None:
    verdict = validate(make_model(fault="wrong normalisation"))
    (reason,) = verdict.reasons
    assert reason.startswith(TITLES["end_to_end"] + ": ")


def test_a_changed_saved_model(make_model: Callable[..., Any], validate: Validate) -> None:
    model = make_model()
    with open(Path(model.uri, "Format-Serving", "saved_model.pb"), "ab") as file:
        file.write(b"\0")
    assert validate(model).reasons == [
        "the SavedModel is not the one that the manifest describes (saved_model_digest)"
    ]


def test_images_that_are_not_those_torch_saw(
    make_model: Callable[..., Any],
    validate: Validate,
    images: Path,
    ingest: Callable[..., Any],
    tmp_path: Path,
) -> None:
    (images / "test" / "red" / "000.png").write_bytes((images / "test" / "red" / "001.png").read_bytes())
    verdict = validate(make_model(), examples=ingest(images, tmp_path / "changed"))
    first, second = verdict.reasons
    assert first == "test/red/000.png is no longer the image that torch saw (1 such)"
    assert second.startswith(
        "only 14 of the 15 images that torch answered for are in the evaluation split test,"
    )


def test_too_few_images_of_the_evaluation_split(make_model: Callable[..., Any], validate: Validate) -> None:
    assert validate(make_model(), split="val").reasons == [
        "only 0 of the 15 images that torch answered for are in the evaluation split val, at least 15 are wanted; "
        "export with reference images of it (export.reference_split, or --images), "
        "or lower pipeline.parity.min_evaluation_images"
    ]


def test_a_split_that_the_reference_does_not_cover(
    make_model: Callable[..., Any], validate: Validate
) -> None:
    verdict = validate(make_model(), split="val", wanted=0)
    assert verdict.passed
    assert verdict.details["num_covered"] == 0
    assert verdict.summary.endswith("on 15 images, 0 of them in the evaluation split")
    measured = {row["what"] for stage in verdict.details["stages"] for row in stage["measurements"]}
    assert "examples, made of the 15 reference images" in measured


def test_wrong_examples_are_seen_without_a_record_in_the_split(
    make_model: Callable[..., Any], validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = tf.saved_model.load

    def with_wrong_examples(path: str) -> SimpleNamespace:
        right = load(path).signatures
        wrong = {"examples": lambda examples: {"logits": -right["examples"](examples=examples)["logits"]}}
        return SimpleNamespace(signatures={**right, **wrong})

    monkeypatch.setattr(tf.saved_model, "load", with_wrong_examples)
    (reason,) = validate(make_model(), split="val", wanted=0).reasons
    assert reason.startswith(TITLES["end_to_end"] + ": ")


def test_a_measurement_that_cannot_be_made_raises(make_model: Callable[..., Any], validate: Validate) -> None:
    model = make_model()
    Path(model.uri, "manifest.json").unlink()
    with pytest.raises(FileNotFoundError):
        validate(model)


def test_a_label_that_is_not_the_class() -> None:
    import numpy as np

    wrong = parity_validator.inconsistent_answer(np.array([1, 0]), np.array([b"b", b"b"]), labels=["a", "b"])
    assert wrong == "class_id 0 is answered with the label 'b'"
    assert parity_validator.inconsistent_answer(np.array([1]), np.array(["b"]), labels=["a", "b"]) is None


def test_reduced_precision_is_held_to_the_limits_that_its_bundle_records() -> None:
    given = {"logit_error": 1e-3, "top1_agreement": 1.0}
    full = {"export": {"precision": "fp32"}, "parity": {"served_gates": {"top1_agreement": 0.5}}}
    assert gates_of(full, **given) == GateConfig(**given)
    config = ExportConfig(precision="bf16")
    half = {"export": {"precision": "bf16"}, "parity": {"served_gates": asdict(config.served_gates)}}
    assert gates_of(half, **given) == config.served_gates
    assert gates_of(half, **given).logit_error is None


def test_a_model_whose_answers_differ_is_refused_in_reduced_precision_too(
    make_model: Callable[..., Any],
) -> None:
    model = make_model(fault="swapped channels")
    results = parity_validator.measure(
        saved_model_of(model),
        reference_of(model),
        {},
        gates=ExportConfig(precision="int8").served_gates,
        manifest=manifest_of(model),
    )
    assert [result.passed for result in results] == [False, False]
    assert all("top-1 agreement" in (result.problem or "") for result in results)
