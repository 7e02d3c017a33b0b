"""The torch half's core: reference answers for some images, and the ONNX file that shall give the same.

torch has two exporters, and neither carries all of timm. The TorchScript one is frozen, but its graphs cross to
TensorFlow far more often; the dynamo one follows models that TorchScript cannot trace with a dynamic batch
(an adaptive pooling whose input size it does not see, `aten::rms_norm`). So the configured one comes first, and
where it refuses the model, or ONNX Runtime's answers are not torch's, the other one is tried. The record says
which one wrote the file, and why the first did not.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.errors import ExportError
from isthmus.export.parity import StageResult
from isthmus.export.torch_half import foreign_onnx, runtime
from isthmus.export.torch_half.foreign_ending import check_logits
from isthmus.export.torch_half.foreign_form import normalized
from isthmus.export.torch_half.model import load_model, logits
from isthmus.export.torch_half.onnx_model import EXPORTERS, finish_onnx, lowest_opset, write_onnx

log = logging.getLogger(__name__)


@dataclass(kw_only=True, frozen=True, eq=False)
class Crossing:
    """What the torch half has made."""

    answers: np.ndarray
    """The reference logits, float32 [N, C]."""

    stage: StageResult
    """The verdict on the written file."""

    facts: dict[str, Any]
    """"exporter", "exporters_tried", "opset", "simplified", "nodes"."""


def cross(
    checkpoint: Checkpoint, images: np.ndarray, target: Path, config: ExportConfig, *, paths: Sequence[str]
) -> Crossing:
    """Write `target` (ONNX) and measure it.

    Args:
        checkpoint: A timm model with weights, or an ONNX file from elsewhere.
        images: float32 NHWC [N ≥ 2, H, W, 3], preprocessed.
        target: The ONNX file to write.
        config: Exporter, opset, gates.
        paths: Names of the images.

    Raises:
        ExportError: The model or the file cannot be used, or every exporter refuses it.
    """
    crossing = _OnnxFile if checkpoint.is_onnx else _TimmModel
    return crossing(checkpoint, images, target, config, paths).cross()


class _Subject:
    """What both kinds share."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: np.ndarray,
        target: Path,
        config: ExportConfig,
        paths: Sequence[str],
    ) -> None:
        self.checkpoint, self.images, self.target = checkpoint, images, target
        self.config, self.paths = config, paths

    def judge(self, file: Path, answers: np.ndarray) -> StageResult:
        """ONNX Runtime on `file` against the reference answers."""
        return runtime.judge(
            file,
            self.images,
            answers,
            gates=self.config.gates,
            head=self.checkpoint.model["head"],
            paths=self.paths,
        )


class _TimmModel(_Subject):
    """The answers are torch's."""

    def cross(self) -> Crossing:
        """One exporter after the other, until the file is the model."""
        model = load_model(self.checkpoint, exportable=False)
        answers = logits(model, self.images, num_classes=self.checkpoint.model["num_classes"])
        del model
        gc.collect()
        tried: list[dict[str, Any]] = []
        written: list[tuple[Path, StageResult, dict[str, Any]]] = []
        first = self.config.exporter
        for exporter in (first, *(other for other in EXPORTERS if other != first)):
            file = self.target.with_name(f"{exporter}-{self.target.name}")
            opset = max(self.config.opset, lowest_opset(exporter))
            try:
                facts = self._write(file, exporter=exporter, opset=opset)
                stage = self.judge(file, answers)
                error = stage.problem
                written.append((file, stage, {"exporter": exporter, "opset": opset, **facts}))
            except ExportError as refused:
                error = str(refused)
                file.unlink(missing_ok=True)
            tried.append({"exporter": exporter, "opset": opset, "passed": error is None, "error": error})
            if error is None:
                break
            log.warning("the %s exporter does not carry the model: %s", exporter, error)
        if not written:
            raise ExportError(" | ".join(attempt["error"] for attempt in tried))
        return self._best(answers, written, tried)

    def _write(self, file: Path, *, exporter: str, opset: int) -> dict[str, Any]:
        # Built anew for each: an exporter may leave a model changed.
        model = load_model(self.checkpoint, exportable=True)
        return write_onnx(model, self.images[:2], file, exporter=exporter, opset=opset)

    def _best(
        self,
        answers: np.ndarray,
        written: list[tuple[Path, StageResult, dict[str, Any]]],
        tried: list[dict[str, Any]],
    ) -> Crossing:
        """The file that passed, or else the one nearest to the model; the others go."""

        def distance(entry: tuple[Path, StageResult, dict[str, Any]]) -> tuple[bool, float]:
            error = entry[1].error
            return not entry[1].passed, float("inf") if error is None else error

        best = min(written, key=distance)
        for file, _, _ in written:
            if file != best[0]:
                file.unlink()
        best[0].rename(self.target)
        return Crossing(answers=answers, stage=best[1], facts={**best[2], "exporters_tried": tried})


class _OnnxFile(_Subject):
    """The answers are ONNX Runtime's, on the file as it came."""

    def cross(self) -> Crossing:
        """The file in the bridge's form."""
        found = foreign_onnx.read(self.checkpoint.weights, cut=False)
        answers = found.answers(self.images)
        origin = self.checkpoint.origin
        if origin["cut_off"] is None:
            head = self.checkpoint.model["head"]
            check_logits(answers, head=head, head_given=bool(origin.get("head_given")))
        facts = finish_onnx(normalized(found, images=self.images, reference=answers), self.target)
        return Crossing(
            answers=answers,
            stage=self.judge(self.target, answers),
            facts={
                "exporter": "foreign",
                "exporters_tried": [],
                "opset": origin["opset"],
                **facts,
            },
        )
