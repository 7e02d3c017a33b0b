"""The torch half's core: reference answers for some images, and the ONNX file that shall give the same."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.torch_half import foreign_onnx
from isthmus.export.torch_half.foreign_form import normalized
from isthmus.export.torch_half.model import load_model, logits
from isthmus.export.torch_half.onnx_model import finish_onnx, write_onnx


def cross(
    checkpoint: Checkpoint, images: np.ndarray, target: Path, config: ExportConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """Write `target` (ONNX); returns the reference logits float32 [N, C] and facts about the file.

    Args:
        checkpoint: A timm model with weights, or an ONNX file from elsewhere.
        images: float32 NHWC [N ≥ 2, H, W, 3], preprocessed.
        target: The ONNX file to write.
        config: Exporter and opset.

    Raises:
        ExportError: The model or the file cannot be used, or the exporter refuses it.
    """
    carry = _onnx_file if checkpoint.is_onnx else _timm_model
    return carry(checkpoint, images, target, config)


def _timm_model(
    checkpoint: Checkpoint, images: np.ndarray, target: Path, config: ExportConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """The answers are torch's."""
    model = load_model(checkpoint, exportable=False)
    answers = logits(model, images, num_classes=checkpoint.model["num_classes"])
    del model
    gc.collect()
    written = write_onnx(
        load_model(checkpoint, exportable=True),
        images[:2],
        target,
        exporter=config.exporter,
        opset=config.opset,
    )
    return answers, {"exporter": config.exporter, "opset": config.opset, **written}


def _onnx_file(
    checkpoint: Checkpoint, images: np.ndarray, target: Path, config: ExportConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """The answers are ONNX Runtime's, on the file as it came."""
    del config
    found = foreign_onnx.read(checkpoint.weights)
    answers = found.answers(images)
    written = finish_onnx(normalized(found, images=images, reference=answers), target)
    return answers, {"exporter": "foreign", "opset": checkpoint.origin["opset"], **written}
