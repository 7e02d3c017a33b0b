"""LSTM against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_lstm(agree, rng, direction, with_bias):
    directions, hidden, inputs = (2 if direction == "bidirectional" else 1), 4, 3
    constants = {
        "w": rng.standard_normal((directions, 4 * hidden, inputs), np.float32),
        "r": rng.standard_normal((directions, 4 * hidden, hidden), np.float32),
    }
    if with_bias:
        constants["b"] = rng.standard_normal((directions, 8 * hidden), np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", *constants], ["y", "h", "c"], hidden_size=hidden, direction=direction),
    ]
    agree(nodes, {"x": rng.standard_normal((2, 5, inputs), np.float32)}, constants, outputs=["y", "h", "c"])
