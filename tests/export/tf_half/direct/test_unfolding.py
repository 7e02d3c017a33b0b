"""Col2Im against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize(
    ("image", "block", "attributes", "positions"),
    [
        ([6, 7], [3, 2], {}, 24),
        ([8, 8], [3, 3], {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 16),
        ([9, 7], [2, 3], {"strides": [3, 1], "pads": [0, 2, 1, 1]}, 24),
        ([9, 9], [3, 2], {"dilations": [2, 3], "strides": [2, 1]}, 18),
    ],
)
def test_col2im(agree, rng, image, block, attributes, positions):
    x = rng.standard_normal((2, 4 * block[0] * block[1], positions), np.float32)
    node = helper.make_node("Col2Im", ["x", "i", "b"], ["y"], **attributes)
    agree(node, {"x": x}, {"i": np.array(image), "b": np.array(block)}, opset=18)
