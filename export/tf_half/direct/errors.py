"""What the op-by-op lowering raises for a graph that it cannot carry."""

from __future__ import annotations

from isthmus.export.errors import ExportError


class LoweringError(ExportError):
    """An ONNX file that cannot become a TensorFlow graph; the text says where and what would be accepted."""


class UnsupportedOperatorError(LoweringError):
    """An operator, or a form of one, that has no lowering.

    `op_type`, `domain`, `opset` and `node` say which, so that a report can group by them.
    """

    def __init__(self, *, op_type: str, domain: str, opset: int, node: str, reason: str) -> None:
        self.op_type = op_type
        self.domain = domain or "ai.onnx"
        self.opset = opset
        self.node = node
        self.reason = reason
        super().__init__(
            f"cannot lower ONNX operator {op_type} (domain {self.domain}, opset {opset}) "
            f"of node {node!r}: {reason}"
        )
