"""The model as an MLflow pyfunc, for `mlflow models serve`, to compare with.

python benchmarks/mlflow_model.py SAVED_MODEL OUT

MLflow runs this file again in its server (a model from code); SAVED_MODEL is then an artifact.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import mlflow
from mlflow.models import ModelSignature, set_model
from mlflow.types import ColSpec, DataType, Schema


class Images(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A table with a column of base64 images in, a table of outputs out."""

    def load_context(self, context: Any) -> None:
        """Loads the SavedModel."""
        import tensorflow as tf

        self.model = tf.saved_model.load(context.artifacts["saved_model"])
        self.predict_images = self.model.signatures["serving_default"]

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002
        """One row per image. MLflow goes by the names of the parameters."""
        import tensorflow as tf

        images = [base64.b64decode(text) for text in model_input["image"]]
        outputs = self.predict_images(image_bytes=tf.constant(images))
        return {
            name: [v.decode() for v in values.tolist()] if values.dtype == object else values.tolist()
            for name, values in ((name, tensor.numpy()) for name, tensor in outputs.items())
        }


if __name__ == "__main__":
    mlflow.pyfunc.save_model(
        sys.argv[2],
        python_model=__file__,
        artifacts={"saved_model": sys.argv[1]},
        signature=ModelSignature(inputs=Schema([ColSpec(DataType.string, "image")])),
        pip_requirements=["tensorflow"],
    )
else:
    set_model(Images())
