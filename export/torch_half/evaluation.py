"""What reduced precision is judged on and calibrated with: real images, and torch's fp32 answers for the former."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.errors import ExportError
from isthmus.export.reduced import Evaluation
from isthmus.export.torch_half import foreign_onnx
from isthmus.export.torch_half import images as evaluation_images
from isthmus.export.torch_half.model import load_model, logits

log = logging.getLogger(__name__)

_CALIBRATION_SPLITS = ("val", "train")


def write(
    checkpoint: Checkpoint, config: ExportConfig, *, data_root: Path, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write evaluation.npz and, for int8, calibration.npz into `folder`.

    Returns:
        {"evaluation": {"file", "split", "num_images"}, "calibration": the same}, for the manifest.

    Raises:
        ExportError: A split has too few images; the model cannot answer.
    """
    limits, written = config.reduced, {}
    chosen = _taken(
        checkpoint, data_root=data_root, split=config.reference_split, count=limits.evaluation_images
    )
    answers = _answers(checkpoint, chosen.images)
    written["evaluation"] = _save(
        chosen, answers, folder / "evaluation.npz", split=config.reference_split, checkpoint=checkpoint
    )
    if config.precision == "int8":
        split = _calibration_split(data_root, config)
        chosen = _taken(checkpoint, data_root=data_root, split=split, count=limits.calibration_images)
        nobody = np.zeros((len(chosen.paths), 0), np.float32)
        written["calibration"] = _save(
            chosen, nobody, folder / "calibration.npz", split=split, checkpoint=checkpoint
        )
    return written


def _calibration_split(data_root: Path, config: ExportConfig) -> str:
    """Images that nothing is judged on, where there are any."""
    for split in _CALIBRATION_SPLITS:
        if split != config.reference_split and (data_root / split).is_dir():
            return split
    log.warning("no split %s: calibration uses the evaluation images", " or ".join(_CALIBRATION_SPLITS))
    return config.reference_split


def _taken(
    checkpoint: Checkpoint, *, data_root: Path, split: str, count: int
) -> evaluation_images.EvaluationImages:
    choose = evaluation_images.chooser(checkpoint)
    files = choose(data_root, split=split, labels=checkpoint.model["labels"], count=count)
    return evaluation_images.preprocess(files, data_root=data_root, preprocessing=checkpoint.preprocessing)


def _answers(checkpoint: Checkpoint, images: np.ndarray) -> np.ndarray:
    if checkpoint.is_onnx:
        return foreign_onnx.read(checkpoint.weights, cut=False).answers(images)
    model = load_model(checkpoint, exportable=False)
    return logits(model, images, num_classes=checkpoint.model["num_classes"])


def _save(
    taken: evaluation_images.EvaluationImages,
    answers: np.ndarray,
    file: Path,
    *,
    split: str,
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    mean, std = (np.array(checkpoint.preprocessing[key], np.float32) for key in ("mean", "std"))
    evaluation = Evaluation(
        pixels=taken.pixels,
        logits=answers,
        labels=taken.labels,
        paths=taken.paths,
        split=split,
        mean=mean,
        std=std,
    )
    if not np.allclose(evaluation.images(slice(4)), taken.images[:4], atol=1e-5):
        raise ExportError(
            "timm's normalisation is more than mean and std: reduced precision is not measured on it"
        )
    evaluation.save(file)
    return {"file": str(file), "split": split, "num_images": len(evaluation)}
