"""Writes three SavedModels of 8 MB, y = 0.5 x + 1, + 2 and + 3: versions that can be told apart by their answers.

python benchmarks/soak_model.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf


class HalfPlus(tf.Module):  # type: ignore[misc]
    """Half of x plus an addend; the weights are there for their memory."""

    def __init__(self, addend: float) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_uniform([2_000_000], [1, 2]))
        self.addend = tf.Variable(addend)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x: Any) -> Any:
        """One signature."""
        return {"y": 0.5 * x + self.addend + 0.0 * tf.reduce_max(self.weights)}


if __name__ == "__main__":
    for number in (1, 2, 3):
        model = HalfPlus(float(number))
        tf.saved_model.save(model, str(Path(sys.argv[1]) / str(number)), signatures=model.predict)
