"""Ways to ask a SavedModel: each is a function (signature, inputs) → outputs, numpy in and out.

`tf.saved_model.load` is what Python users and TFX call; the v1 Session loader is what TensorFlow Serving
runs. They optimise the graph differently, so parity is measured through both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.parity import Measurement, comparable_logits, recovered_logits

Caller = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]


def eager_caller(loaded: Any) -> Caller:
    """Call the signatures of what `tf.saved_model.load` returned."""
    import tensorflow as tf

    def call(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = loaded.signatures[signature](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    return call


@contextlib.contextmanager
def session_caller(saved_model: Path) -> Iterator[Caller]:
    """Call the signatures through the v1 loader, in a session with TensorFlow's default options."""
    import tensorflow as tf

    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    # Only while loading: inside, eager calls of others would build graph nodes.
    with graph.as_default():
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(saved_model))

    def call(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        definition = meta_graph.signature_def[signature]
        feeds = {definition.inputs[key].name: value for key, value in inputs.items()}
        return dict(session.run({key: info.name for key, info in definition.outputs.items()}, feeds))

    try:
        yield call
    finally:
        session.close()


def tensors(call: Caller, images: np.ndarray) -> np.ndarray:
    """Logits float32 [n, C] of preprocessed images float32 [n, H, W, 3]."""
    return call("tensors", {"images": images})["logits"]


class BytesQuestions:
    """The three signatures that take encoded images, each turned into logits and checked for consistency."""

    def __init__(self, call: Caller, *, labels: Sequence[str], head: str) -> None:
        """Ask through `call`; `labels` by class index, `head` as in the checkpoint."""
        self._call, self._labels, self._head = call, list(labels), head
        self.inconsistent: str | None = None

    def serving_default(self, encoded: Sequence[bytes]) -> np.ndarray:
        """Logits as far as the probabilities hold them; `class_id` and `label` must agree with them."""
        answer = self._call("serving_default", {"image_bytes": as_strings(encoded)})
        self._check_winner(answer)
        return recovered_logits(answer["probabilities"], head=self._head)

    def examples(self, encoded: Sequence[bytes]) -> np.ndarray:
        """The logits output of `examples`; its other outputs are checked as `serving_default`'s."""
        answer = self._call("examples", {"examples": as_strings([example(data) for data in encoded])})
        self._check_winner(answer)
        return answer["logits"]

    def classify(self, encoded: Sequence[bytes]) -> np.ndarray:
        """Logits from `scores`, put back into the order of the labels by `classes`."""
        answer = self._call("classify", {"inputs": as_strings([example(data) for data in encoded])})
        index_of = {label.encode(): index for index, label in enumerate(self._labels)}
        scores = np.full(answer["scores"].shape, np.nan)
        for row, names in enumerate(answer["classes"]):
            columns = [index_of.get(_as_bytes(name), -1) for name in names]
            if sorted(columns) != list(range(len(self._labels))):
                self.inconsistent = f"classify answers with {list(names)[:3]}…, not the model's labels"
                return scores
            scores[row, columns] = answer["scores"][row]
        return recovered_logits(scores, head=self._head)

    def _check_winner(self, answer: dict[str, np.ndarray]) -> None:
        probabilities, winners = answer["probabilities"], answer["class_id"]
        for row, winner in enumerate(winners):
            if probabilities[row, winner] != probabilities[row].max():
                self.inconsistent = f"class_id {winner} is not the class with the largest probability"
            elif _as_bytes(answer["label"][row]) != self._labels[winner].encode():
                self.inconsistent = f"label {answer['label'][row]!r} is not the label of class_id {winner}"


def example(encoded: bytes) -> bytes:
    """A serialized tf.train.Example with `image/encoded`."""
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return bytes(tf.train.Example(features=features).SerializeToString())


def as_strings(values: Sequence[bytes]) -> np.ndarray:
    """Byte strings as numpy's object array: its own `S` type would cut trailing zero bytes."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def bytes_measurement(
    what: str, questions: BytesQuestions, candidate: np.ndarray, reference_logits: np.ndarray, *, head: str
) -> Measurement:
    """A measurement of logits that came out of probabilities, against what of torch's survives in them."""
    return Measurement(
        what=what,
        candidate=candidate,
        reference=comparable_logits(reference_logits, head=head),
        inconsistent=questions.inconsistent,
    )


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
