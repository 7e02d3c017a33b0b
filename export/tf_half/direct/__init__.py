"""The faithful, op-by-op lowering of ONNX to TensorFlow: the rung for graphs that onnx2tf guesses wrong.

lowering.py    the way through: read, probe shapes, fuse, emit
graph.py       the ONNX file as plain Python
values.py      a value: constant, affine in the batch, or a tensor with a remembered axis order
layout.py      broadcasting and reshaping without moving data
fusions.py     rewrites of the ONNX graph (BatchNorm into weights, Gelu, linear layers)
registry.py    operator -> function, by opset
operators.py   the list of modules that hold those functions
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isthmus.export.tf_half.direct.lowering import LoweredGraph


def lower_graph(onnx_path: Path | str) -> LoweredGraph:
    """ONNX image classifier -> callable: images float32 [N, H, W, C] -> logits float32 [N, num_classes].

    The ONNX input is float32 [N, C, H, W] with a dynamic N. Raises LoweringError for a file that is no such
    model, UnsupportedOperatorError (with op_type, domain, opset, node) for an operator without a lowering.
    """
    from isthmus.export.tf_half.direct.lowering import lower_graph as lower

    return lower(onnx_path)
