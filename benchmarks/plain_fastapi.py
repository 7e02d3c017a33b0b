"""The model server one writes in ten minutes: FastAPI around tf.saved_model.load, to compare with.

MODEL=folder uvicorn plain_fastapi:app
"""

from __future__ import annotations

import base64
import os
from typing import Any

import tensorflow as tf
from fastapi import FastAPI

app = FastAPI()
model = tf.saved_model.load(os.environ["MODEL"])
predict_images = model.signatures["serving_default"]


@app.get("/ping")
def ping() -> dict[str, Any]:
    """The server is there."""
    return {}


@app.post("/predict")
def predict(body: dict[str, Any]) -> dict[str, Any]:
    """Every output of the model for images in base64."""
    images = [base64.b64decode(instance["b64"]) for instance in body["instances"]]
    outputs = predict_images(image_bytes=tf.constant(images))
    return {
        name: [v.decode() for v in values.tolist()] if values.dtype == object else values.tolist()
        for name, values in ((name, tensor.numpy()) for name, tensor in outputs.items())
    }
