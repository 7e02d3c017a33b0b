"""The verdict on a SavedModel: a right one passes every stage; and each wrong one is caught and named."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isthmus.export.bundle import write_manifest_copies
from isthmus.export.config import GateConfig
from isthmus.export.parity import StageResult
from isthmus.export.reference import Reference
from isthmus.export.tf_half import saving, verify
from isthmus.export.tf_half.callers import as_strings, eager_caller

Check = Callable[..., verify.Verification]

SIZE = 16
LABELS = [f"class {i}" for i in range(5)]
PREPROCESSING: dict[str, Any] = {
    "input_size": [3, SIZE, SIZE],
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def weights() -> np.ndarray:
    """A linear classifier [H*W*3, C]; what "torch" computes here is one matrix product in float32."""
    return np.random.default_rng(1).normal(size=(SIZE * SIZE * 3, len(LABELS))).astype(np.float32) / 10


def normalized(pixels: np.ndarray) -> np.ndarray:
    mean, std = np.float32(PREPROCESSING["mean"]), np.float32(PREPROCESSING["std"])
    return ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)


def reference() -> Reference:
    """Images of the very input size: PIL's resize leaves them as they are."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    encoded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    images = normalized(pixels)
    return Reference(
        images=images,
        pixels=pixels,
        logits=images.reshape(len(images), -1) @ weights(),
        encoded=tuple(encoded),
        labels=np.zeros(len(images), np.int64),
        paths=tuple(f"test/{i}.png" for i in range(len(images))),
    )


def linear(images: tf.Tensor) -> tf.Tensor:
    return tf.matmul(tf.reshape(images, [-1, SIZE * SIZE * 3]), tf.constant(weights()))


def save(
    target: Path,
    *,
    logits_fn: Callable[[tf.Tensor], tf.Tensor] = linear,
    preprocessing: dict[str, Any] = PREPROCESSING,
    labels: list[str] = LABELS,
    head: Any = "single_label",
) -> Path:
    saving.save(
        logits_fn,
        target=target,
        preprocessing=preprocessing,
        labels=labels,
        head=head,
        warmup_batch_sizes=[1, 4],
        sample_images=list(reference().encoded[:4]),
    )
    write_manifest_copies(target, {"schema_version": 1, "name": "toy"})
    return target


@pytest.fixture
def check() -> Iterator[Check]:
    """Opens a SavedModel for verification; closed after the test."""
    with ExitStack() as stack:

        def open_one(saved_model: Path, *, head: str = "single_label") -> verify.Verification:
            return stack.enter_context(
                verify.opened(
                    saved_model,
                    reference=reference(),
                    labels=LABELS,
                    head=head,
                    batch_sizes=[1, 3, 4],
                    gates=GateConfig(),
                )
            )

        yield open_one


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("right") / "saved_model")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def test_a_right_model_passes_in_both_loaders(check: Check, right: Path) -> None:
    result = check(right).saved_model()
    assert result.passed, result.problem
    assert result.error is not None
    assert result.error < 1e-5
    assert [row["what"] for row in result.measurements] == [
        "tf.saved_model.load, batch 1",
        "tf.saved_model.load, batch 3",
        "tf.saved_model.load, batch 4",
        "v1 session, batch 1",
        "v1 session, batch 3",
        "v1 session, batch 4",
    ]


def test_its_pixels_and_its_answers_are_right(check: Check, right: Path) -> None:
    checked = check(right)
    pixels, answers = checked.preprocessing(), checked.end_to_end()
    assert (pixels.passed, pixels.error) == (True, 0.0), pixels.problem
    assert answers.passed, answers.problem
    assert {row["what"].split(",")[0] for row in answers.measurements} == {
        "serving_default",
        "examples",
        "classify",
    }


def test_a_multi_label_head_is_compared_through_its_sigmoids(check: Check, tmp_path: Path) -> None:
    saved_model = save(tmp_path / "saved_model", head="multi_label")
    result = check(saved_model, head="multi_label").end_to_end()
    assert result.passed, result.problem
    # Judged as a softmax head the same model must fail: the sigmoids do not add up to one.
    assert not check(saved_model).end_to_end().passed


def test_wrong_normalization_fails_from_the_bytes_on_only(check: Check, tmp_path: Path) -> None:
    wrong = {**PREPROCESSING, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    checked = check(save(tmp_path / "saved_model", preprocessing=wrong))
    assert checked.saved_model().passed
    assert checked.preprocessing().passed
    answers = checked.end_to_end()
    assert not answers.passed
    assert "limit 1.0e-03, worst on test/" in (answers.problem or "")


def test_swapped_channels_fail(check: Check, tmp_path: Path) -> None:
    result = check(
        save(tmp_path / "saved_model", logits_fn=lambda images: linear(images[..., ::-1]))
    ).saved_model()
    assert not result.passed
    assert result.error is not None
    assert result.error > 0.1


def test_another_crop_fails_in_the_pixels(check: Check, tmp_path: Path) -> None:
    wrong = {**PREPROCESSING, "crop_pct": 0.9}
    result = check(save(tmp_path / "saved_model", preprocessing=wrong)).preprocessing()
    assert not result.passed
    assert "differing pixel values, limit 0, worst on test/" in (result.problem or "")


def test_an_error_just_over_the_limit_fails_and_names_the_image(check: Check, tmp_path: Path) -> None:
    unit = float(np.mean(np.std(reference().logits.astype(np.float64), axis=0)))
    off_by = np.float32(1.1e-3 * unit)
    result = check(
        save(tmp_path / "saved_model", logits_fn=lambda images: linear(images) + off_by)
    ).saved_model()
    assert not result.passed
    assert result.problem is not None
    assert result.problem.startswith("1.1e-03, limit 1.0e-03, worst on test/")


def test_labels_in_another_order_fail_although_every_number_is_right(check: Check, tmp_path: Path) -> None:
    checked = check(save(tmp_path / "saved_model", labels=LABELS[::-1]))
    assert checked.saved_model().passed
    result = checked.end_to_end()
    assert not result.passed
    assert "is not the label of class_id" in (result.problem or "")


def test_a_manifest_that_the_model_does_not_answer_with_fails(
    check: Check, right: Path, tmp_path: Path
) -> None:
    import shutil

    saved_model = Path(shutil.copytree(right, tmp_path / "saved_model"))
    checked = check(saved_model)
    write_manifest_copies(saved_model, {"schema_version": 1, "name": "another"})
    # The v1 session reads the new file at load and agrees; the model loaded before does not.
    answer = eager_caller(checked.loaded)("manifest", {"inputs": as_strings([b""])})["manifest"][0]
    assert json.loads(answer) == {"schema_version": 1, "name": "toy"}
    with pytest.raises(verify.ExportError, match=r"does not answer with assets/manifest\.json"):
        checked._check_manifest(eager_caller(checked.loaded))


def test_a_stage_that_raises_has_failed() -> None:
    def broken() -> StageResult:
        raise RuntimeError("no such tensor\nsecond line")

    result = verify._guarded("end_to_end", broken, GateConfig())
    assert not result.passed
    assert result.error is None
    assert result.problem == "could not be measured: RuntimeError: no such tensor"


def without_end(png: bytes) -> bytes:
    """The same PNG without its end chunk: Pillow reads it, TensorFlow does not."""
    shorter = png[: png.rindex(b"IEND") - 4]
    assert np.asarray(Image.open(io.BytesIO(shorter))).shape == (SIZE, SIZE, 3)
    return shorter


def test_an_image_that_only_pillow_reads_is_named_by_its_path(right: Path, job: Path, tmp_path: Path) -> None:
    whole = reference()
    odd = {2, 17}
    encoded = tuple(without_end(data) if i in odd else data for i, data in enumerate(whole.encoded))
    dataclasses.replace(whole, encoded=encoded).save(tmp_path / "reference.npz")
    answer = verify.run(
        job,
        {
            "name": "toy",
            "saved_model": str(right),
            "reference": str(tmp_path / "reference.npz"),
            "labels": LABELS,
            "head": "single_label",
            "batch_sizes": [1, 4],
            "gates": vars(GateConfig()),
            "stages": ["saved_model", "preprocessing", "end_to_end"],
        },
    )
    first, *of_bytes = [StageResult(**stage) for stage in answer["stages"]]
    assert first.passed
    assert [stage.passed for stage in of_bytes] == [False, False]
    for stage in of_bytes:
        assert stage.problem == (
            "could not be measured: the served graph cannot read 2 of the 20 reference images, which Pillow reads: "
            f"{whole.paths[2]}, {whole.paths[17]}; save them again or take them out (docs/preprocessing.md says what "
            "it reads)"
        )


def test_a_folder_that_is_no_saved_model_is_refused(check: Check, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(verify.ExportError, match=r".*empty does not load: OSError"):
        check(tmp_path / "empty")


@pytest.mark.slow
def test_the_whole_job_asks_a_running_server_as_well(right: Path, job: Path, tmp_path: Path) -> None:
    reference().save(tmp_path / "reference.npz")
    answer = verify.run(
        job,
        {
            "name": "toy",
            "saved_model": str(right),
            "reference": str(tmp_path / "reference.npz"),
            "labels": LABELS,
            "head": "single_label",
            "batch_sizes": [1, 3, 4],
            "gates": vars(GateConfig()),
            "server_log": str(tmp_path / "server.log"),
        },
    )
    stages = [StageResult(**stage) for stage in answer["stages"]]
    assert [(stage.stage, stage.passed) for stage in stages] == [
        ("saved_model", True),
        ("preprocessing", True),
        ("end_to_end", True),
        ("server_grpc", True),
        ("server_rest", True),
    ], [stage.line() for stage in stages]
