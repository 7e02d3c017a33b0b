"""Asking a model.tflite through the LiteRT runtime, numpy in and out; TensorFlow is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class LiteRt:
    """A model.tflite ready to answer: images float32 [N, H, W, 3] -> logits float32 [N, C]."""

    def __init__(self, model: Path | bytes, *, num_threads: int = 1) -> None:
        """Load the file, or its bytes."""
        from ai_edge_litert.interpreter import Interpreter

        source: dict[str, Any] = (
            {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        )
        self._interpreter = Interpreter(**source, num_threads=num_threads)
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self._batch = 0

    @property
    def is_dynamic(self) -> bool:
        """Whether the batch may be of any size."""
        return bool(self._input["shape_signature"][0] == -1)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """One call for the whole batch."""
        if len(images) != self._batch:
            if self.is_dynamic:
                self._interpreter.resize_tensor_input(self._input["index"], images.shape, strict=True)
            self._interpreter.allocate_tensors()
            self._batch = len(images)
        self._interpreter.set_tensor(self._input["index"], np.ascontiguousarray(images, np.float32))
        self._interpreter.invoke()
        return np.array(self._interpreter.get_tensor(self._output["index"]))
