"""The first stage: ONNX Runtime on `model.onnx` against torch.

ONNX Runtime itself may be wrong. On resnetv2_50x1_bit (1.31.1) its graph optimisers, from the basic level on, give
other numbers than the graph they started from: they put a Pad with zeros into the MaxPool behind it, whose padding
is -inf, and where all neighbours are negative the zero was the answer. Run as it is written the graph is right. So
where the file fails at the default level the lower ones are tried too. A stage that passes at one of those has
passed: it asks whether the *file* is the model. Which level it was, and how far off the ones above were, stand in
its note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from isthmus.export.config import GateConfig
from isthmus.export.errors import ExportError
from isthmus.export.parity import Measurement, StageResult, judge_logits
from isthmus.export.reference import in_batches
from isthmus.export.torch_half.model import to_nchw
from isthmus.export.torch_half.onnx_model import INPUT_NAME, OUTPUT_NAME

#: ONNX Runtime's names of its optimisation levels, the default first.
LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def judge(
    target: Path,
    images: np.ndarray,
    reference: np.ndarray,
    *,
    gates: GateConfig,
    head: str,
    paths: Sequence[str],
) -> StageResult:
    """The verdict of the stage `onnxruntime`, at the highest optimisation level that passes; else the default's.

    Args:
        target: The ONNX file.
        images: float32 NHWC [N, H, W, 3], preprocessed.
        reference: torch's logits for them, [N, C].
        gates: Limits.
        head: "single_label" or "multi_label".
        paths: Names of the images.

    Raises:
        ExportError: ONNX Runtime does not load or run the file at any level.
    """
    failed: list[StageResult] = []
    above: list[str] = []
    refused: ExportError | None = None
    for level in LEVELS:
        try:
            measurements = measure(target, images, level=level)
        except ExportError as error:
            refused = refused or error
            above.append(f"{level}: {error}")
            continue
        stage = judge_logits("onnxruntime", reference, measurements, gates=gates, head=head, paths=paths)
        if stage.passed:
            return replace(stage, note=_note(level, above)) if above else stage
        failed.append(stage)
        above.append(f"{level}: {stage.problem}")
    if not failed:
        assert refused is not None
        raise refused
    return replace(failed[0], note="no lower optimisation level of ONNX Runtime passes either")


def _note(level: str, above: Sequence[str]) -> str:
    return f"right only at ONNX Runtime's optimisation level {level}; above it {'; '.join(above)}"


def measure(target: Path, images: np.ndarray, *, level: str = LEVELS[0]) -> list[Measurement]:
    """ONNX Runtime's logits for NHWC images [N, H, W, 3] at batch 1, 3 and N.

    Raises:
        ExportError: ONNX Runtime does not load or run the file.
    """
    import onnxruntime

    nchw = to_nchw(images)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
        return [
            Measurement(
                what=f"batch {size}",
                candidate=in_batches(
                    lambda batch: session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0], nchw, size
                ),
            )
            for size in (1, 3, len(nchw))
        ]
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} refused the model: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
