"""The ladder's rungs: ONNX to a TensorFlow function, by one road or the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tensorflow as tf

from isthmus.export.errors import ExportError

Rung = Literal["onnx2tf", "direct"]
RUNGS: tuple[Rung, ...] = ("onnx2tf", "direct")


def lower(onnx_path: Path, *, rung: Rung) -> Callable[[tf.Tensor], tf.Tensor]:
    """Lower an ONNX classifier: one float32 input [N, 3, H, W] with a dynamic N, one output [N, C].

    Args:
        onnx_path: the model; it is only read.
        rung: `onnx2tf` converts with onnx2tf; `direct` carries operator by operator, keeping ONNX's
        semantics.

    Returns:
        A function images float32 [N, H, W, 3] -> logits float32 [N, C], to be traced into a `tf.function`.

    Raises:
        ExportError: the file is no such model, or this rung does not carry it; the text names the node.
    """
    if rung not in RUNGS:
        raise ExportError(f"unknown rung {rung!r}; one of {', '.join(RUNGS)}")
    if not onnx_path.is_file():
        raise ExportError(f"{onnx_path} is not a file; expected an ONNX model")
    if rung == "direct":
        from isthmus.export.tf_half.direct import lower_graph

        return lower_graph(onnx_path)
    from isthmus.export.tf_half import onnx2tf_rung

    return onnx2tf_rung.lower(onnx_path)
