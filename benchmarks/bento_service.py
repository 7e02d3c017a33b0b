"""The model as BentoML's documentation has one write it, to compare with.

MODEL=folder bentoml serve bento_service:Classifier
"""

from __future__ import annotations

import base64
import os

import bentoml
import tensorflow as tf


@bentoml.service(workers=1)
class Classifier:
    """One process, one model."""

    def __init__(self) -> None:
        self.model = tf.saved_model.load(os.environ["MODEL"])
        self.predict_images = self.model.signatures["serving_default"]

    @bentoml.api
    def predict(self, images: list[str]) -> dict[str, list]:
        """Every output of the model for images in base64."""
        encoded = [base64.b64decode(image) for image in images]
        outputs = self.predict_images(image_bytes=tf.constant(encoded))
        return {
            name: [v.decode() for v in values.tolist()] if values.dtype == object else values.tolist()
            for name, values in ((name, tensor.numpy()) for name, tensor in outputs.items())
        }
