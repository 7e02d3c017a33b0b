"""The five signatures of every SavedModel, as one `tf.Module`.

    serving_default  image_bytes string [N]: encoded images
                     -> probabilities float32 [N, C], class_id int64 [N], label string [N]
    tensors          images float32 [N, H, W, 3], preprocessed -> logits float32 [N, C]
    examples         examples string [N]: serialized tf.train.Example with image/encoded
                     -> as serving_default, and logits
    classify         inputs string [N]: as examples -> classes string [N, C], scores float32 [N, C]
    manifest         inputs string [N], ignored -> manifest string [N], the same JSON N times

`classify` is what TensorFlow Serving's Classify method calls: it sends serialized Examples. Labels and the
manifest are read from the model's assets when it is loaded, so that the manifest can be written after
verification without touching the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from isthmus.export.tf_half.preprocessing import Preprocessing

Head = Literal["single_label", "multi_label"]
IMAGE_FEATURE = "image/encoded"


class _Lines(tf.lookup.TextFileInitializer):
    """Line number to line of a text asset."""

    def __init__(self, asset: tf.saved_model.Asset, name: str) -> None:
        self._name_in_graph = name
        super().__init__(
            asset,
            key_dtype=tf.int64,
            key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
            value_dtype=tf.string,
            value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
        )

    @property
    def _shared_name(self) -> str:
        # TensorFlow's own name for it holds the asset's address in memory, different in every run.
        return f"lines_of_{self._name_in_graph}"


class ServedModel(tf.Module):
    """A classifier with its preprocessing, its labels and its manifest inside."""

    def __init__(
        self,
        logits: Any,
        *,
        variables: Sequence[tf.Variable],
        preprocessing: Preprocessing,
        head: Head,
        num_classes: int,
        labels_file: Path,
        manifest_file: Path,
    ) -> None:
        """
        Args:
            logits: concrete function, preprocessed images -> [logits] (`weightless.trace`).
            variables: what it captures.
            preprocessing: from encoded bytes to the model's input.
            head: probabilities are a softmax over the classes, or one sigmoid each.
            num_classes: C.
            labels_file: `labels.txt`, one label a line, in the order of the classes.
            manifest_file: `manifest.json`, one line; a placeholder until the model is verified.
        """
        super().__init__(name="served_model")
        self._logits = logits
        self._weights = list(variables)
        self._head = head
        self._num_classes = num_classes
        self._height, self._width = preprocessing.height, preprocessing.width
        self._labels_asset = tf.saved_model.Asset(str(labels_file))
        self._manifest_asset = tf.saved_model.Asset(str(manifest_file))
        self._labels = tf.lookup.StaticHashTable(_Lines(self._labels_asset, "labels"), "")
        self._manifest = tf.lookup.StaticHashTable(_Lines(self._manifest_asset, "manifest"), "")

        # Traced once: the signatures share it, and it is saved once. It is reachable on a loaded model too,
        # so that the pixels of the very artifact can be compared: tf.saved_model.load(...).pixels(encoded).
        spec = tf.TensorSpec([None], tf.string, name="image_bytes")
        # A concrete function: of the other kind, TensorFlow would trace and save a second one.
        self.pixels = tf.function(
            preprocessing.pixels, input_signature=[spec], autograph=False
        ).get_concrete_function()
        self._normalize = preprocessing.normalize

    def _logits_of(self, images: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(self._logits(images)[0], [None, self._num_classes])

    def _logits_of_bytes(self, encoded: tf.Tensor) -> tf.Tensor:
        return self._logits_of(self._normalize(self.pixels(encoded)))

    def _scores(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(logits) if self._head == "multi_label" else tf.nn.softmax(logits)

    def _answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        class_id = tf.argmax(logits, axis=-1, output_type=tf.int64)
        return {
            "probabilities": self._scores(logits),
            "class_id": class_id,
            "label": self._labels.lookup(class_id),
        }

    def _logits_of_examples(self, examples: tf.Tensor) -> tf.Tensor:
        parsed = tf.io.parse_example(examples, {IMAGE_FEATURE: tf.io.FixedLenFeature([], tf.string)})
        return self._logits_of_bytes(parsed[IMAGE_FEATURE])

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by signature name, for `tf.saved_model.save`."""

        def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._answer(self._logits_of_bytes(image_bytes))

        def tensors(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self._logits_of(images)}

        def examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = self._logits_of_examples(examples)
            return {**self._answer(logits), "logits": logits}

        def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            scores = self._scores(self._logits_of_examples(inputs))
            classes = self._labels.lookup(tf.range(self._num_classes, dtype=tf.int64))
            return {"classes": tf.repeat(classes[tf.newaxis], tf.shape(scores)[0], axis=0), "scores": scores}

        def manifest(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"manifest": self._manifest.lookup(tf.zeros_like(inputs, tf.int64))}

        texts = [None]
        specs = {
            serving_default: tf.TensorSpec(texts, tf.string, name="image_bytes"),
            tensors: tf.TensorSpec([None, self._height, self._width, 3], tf.float32, name="images"),
            examples: tf.TensorSpec(texts, tf.string, name="examples"),
            classify: tf.TensorSpec(texts, tf.string, name="inputs"),
            manifest: tf.TensorSpec(texts, tf.string, name="inputs"),
        }
        return {
            function.__name__: tf.function(
                function, input_signature=[spec], autograph=False
            ).get_concrete_function()
            for function, spec in specs.items()
        }
