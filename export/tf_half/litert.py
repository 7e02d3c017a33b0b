"""model.tflite, for LiteRT on phones and small devices: written from the same lowered function as the SavedModel.

    fp32   float32 throughout
    bf16   weights in float16, arithmetic in float32: LiteRT has no bfloat16 kernels, and float16 is the half
           that its delegates (GPUs, NPUs) compute in
    int8   weights and activations in int8, calibrated; input and output stay float32

The input is `images` float32 [N, H, W, 3], preprocessed; the output `logits` float32 [N, C]. N is dynamic
(`resize_tensor_input`) where LiteRT's converter allows it, else 1: the result says which.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.config import Precision
from isthmus.export.errors import ExportError
from isthmus.export.reduced import Evaluation
from isthmus.export.tf_half.precision import LogitsFn, for_litert_int8

log = logging.getLogger(__name__)

FILE = "model.tflite"
#: Sizes that a dynamic file must convert and run at; a fixed one has the first.
_FIXED = 1


def convert(
    logits_fn: LogitsFn,
    target: Path,
    *,
    input_size: Sequence[int],
    precision: Precision,
    calibration: Evaluation | None = None,
) -> dict[str, Any]:
    """Write `target`.

    Args:
        logits_fn: float32 [N, H, W, 3] -> float32 [N, C], in fp32: LiteRT's converter reduces it itself.
        target: the file.
        input_size: [3, H, W].
        precision: see above.
        calibration: for int8.

    Returns:
        {"batch": "dynamic" | 1, "why_fixed": text or None, "bytes": size}.

    Raises:
        ExportError: The converter refuses the model with a fixed batch, too; the text is its first line.
    """
    if precision == "int8":
        assert calibration is not None, "the torch half writes it for int8"
        logits_fn = for_litert_int8(logits_fn, input_size=input_size, calibration=calibration)
    why_fixed = None
    for batch in (None, _FIXED):
        try:
            model = _converted(
                logits_fn, batch, input_size=input_size, precision=precision, calibration=calibration
            )
            if batch is None:
                _try_out(model, input_size)
        except Exception as error:
            if batch is not None:
                raise ExportError(f"LiteRT cannot hold this model: {_line(error)}") from error
            why_fixed = _line(error)
            continue
        target.write_bytes(model)
        return {
            "batch": "dynamic" if batch is None else batch,
            "why_fixed": why_fixed,
            "bytes": len(model),
        }
    raise AssertionError("the loop returns or raises")


def _converted(
    logits_fn: LogitsFn,
    batch: int | None,
    *,
    input_size: Sequence[int],
    precision: Precision,
    calibration: Evaluation | None,
) -> bytes:
    _, height, width = input_size

    def logits(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": tf.identity(logits_fn(images), name="logits")}

    spec = tf.TensorSpec([batch, height, width, 3], tf.float32, name="images")
    module = tf.Module()
    function = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "bf16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        assert calibration is not None, "the torch half writes it for int8"
        converter.representative_dataset = _one_by_one(calibration)
    with _quiet():
        model: bytes = converter.convert()
    return model


def _one_by_one(calibration: Evaluation) -> Callable[[], Iterator[list[np.ndarray]]]:
    def images() -> Iterator[list[np.ndarray]]:
        for row in range(len(calibration)):
            yield [calibration.images(slice(row, row + 1))]

    return images


def _try_out(model: bytes, input_size: Sequence[int]) -> None:
    """Whether a dynamic file really takes another batch; the converter does not say."""
    from isthmus.export.tf_half.litert_runtime import LiteRt

    _, height, width = input_size
    runtime = LiteRt(model)
    for batch in (1, 3):
        answer = runtime.logits(np.zeros((batch, height, width, 3), np.float32))
        if len(answer) != batch:
            raise ExportError(f"{len(answer)} answers to {batch} images")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converter writes temporary SavedModels and says so at length; its folder goes away."""
    with tempfile.TemporaryDirectory(prefix="isthmus-litert-") as folder:
        before = tempfile.tempdir
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _line(error: BaseException) -> str:
    """The first line that names an operator, or else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if "error:" in line or "op is" in line]
    return (named or lines)[0][:300]
