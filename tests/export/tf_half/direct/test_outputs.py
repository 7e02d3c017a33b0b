"""Outputs that a node names besides its first: passed over where nobody reads them, else refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from isthmus.export.tf_half.direct.errors import UnsupportedOperatorError

# What files of Caffe2 and of the ONNX model zoo name although nobody reads it.
NAMED = [
    (helper.make_node("Dropout", ["x"], ["y", "mask"], name="n"), {}, 10),
    (helper.make_node("Dropout", ["x", "r"], ["y", "mask"], name="n"), {"r": np.float32(0.5)}, 13),
    (helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2], name="n"), {}, 12),
    (
        helper.make_node("LayerNormalization", ["x", "w"], ["y", "mean", "inverse"], name="n"),
        {"w": np.array([1, 2, 3, 4], np.float32)},
        17,
    ),
]


@pytest.mark.parametrize(("node", "constants", "opset"), NAMED)
def test_what_nobody_reads_stops_nothing(agree, rng, node, constants, opset):
    agree(node, {"x": rng.standard_normal((2, 3, 4, 4), np.float32)}, constants, opset=opset)


@pytest.mark.parametrize(("node", "constants", "opset"), NAMED)
def test_what_is_read_is_refused_with_its_node(agree, rng, node, constants, opset):
    use = helper.make_node("Cast", [node.output[1]], ["used"], to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedOperatorError, match=rf"{node.op_type} .*of node 'n': its .* is read"):
        agree(
            [node, use],
            {"x": rng.standard_normal((2, 3, 4, 4), np.float32)},
            constants,
            outputs=["y", "used"],
            opset=opset,
        )
