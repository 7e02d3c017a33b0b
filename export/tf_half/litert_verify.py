"""The verdict on model.tflite, in a fresh process, through the LiteRT runtime; no TensorFlow is imported.

    python -m isthmus.export.tf_half.litert_verify <job folder>

request.json: {"model", "reference", "head", "gates"}, and in reduced precision "evaluation" (a file of images)
and "reduced" (ReducedGateConfig). result.json: {"stage": StageResult}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.config import GateConfig, ReducedGateConfig
from isthmus.export.errors import ExportError
from isthmus.export.jobs import serve_job
from isthmus.export.parity import Measurement, StageResult, judge_logits
from isthmus.export.reduced import Evaluation, in_chunks, judge_reduced
from isthmus.export.reference import Reference, in_batches
from isthmus.export.tf_half.litert_runtime import LiteRt

_DYNAMIC_BATCHES = (1, 3)


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Measure the stage `litert`. `folder` is not written to."""
    del folder
    try:
        runtime = LiteRt(Path(request["model"]), num_threads=2)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT does not load {request['model']}: {str(error).splitlines()[0]}") from error
    batches = _DYNAMIC_BATCHES if runtime.is_dynamic else _DYNAMIC_BATCHES[:1]
    judge = _judge_reduced if "evaluation" in request else _judge_full
    return {"stage": judge(runtime, batches, request).as_dict()}


def _judge_full(runtime: LiteRt, batches: tuple[int, ...], request: dict[str, Any]) -> StageResult:
    """By the parity rule, on the reference images."""
    reference = Reference.load(Path(request["reference"]))
    measurements = [
        Measurement(what=f"batch {size}", candidate=in_batches(runtime.logits, reference.images, size))
        for size in batches
    ]
    return judge_logits(
        "litert",
        reference.logits,
        measurements,
        gates=GateConfig(**request["gates"]),
        head=request["head"],
        paths=reference.paths,
    )


def _judge_reduced(runtime: LiteRt, batches: tuple[int, ...], request: dict[str, Any]) -> StageResult:
    """By metric and agreement, on the evaluation images."""
    evaluation = Evaluation.load(Path(request["evaluation"]))
    measured = {
        f"batch {size}": np.concatenate(
            [runtime.logits(evaluation.images(rows)) for rows in in_chunks(evaluation, size)]
        )
        for size in batches
    }
    limits = ReducedGateConfig(**request["reduced"])
    return judge_reduced("litert", evaluation, measured, limits=limits, head=request["head"])


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run))
