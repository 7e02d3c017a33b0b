"""A pushed SavedModel as Beam's RunInference wants it: the loader and the runtime that TensorFlow Serving uses."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from isthmus.serving.errors import RequestError
from isthmus.serving.savedmodel import SavedModel, SessionOptions
from isthmus.serving.status import Code
from isthmus.serving.tensorflow_import import import_tensorflow
from isthmus.tfx_pipeline.prediction_inputs import Shard

SIGNATURE = "serving_default"
_INPUT = "image_bytes"
Batch = list[tuple[str, bytes | str]]


@dataclass(kw_only=True)
class Answers:
    """Columns for the images of a shard, in its order."""

    paths: list[str] = field(default_factory=list)
    class_ids: list[int | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)

    probabilities: list[np.ndarray | None] = field(default_factory=list)
    """float32 [C] each; None for an image that could not be read."""

    errors: list[str | None] = field(default_factory=list)
    """Why an image has no answer; None where it has one."""

    def fail(self, path: str, why: str) -> None:
        """A row without an answer."""
        self.paths.append(path)
        self.class_ids.append(None)
        self.labels.append(None)
        self.probabilities.append(None)
        self.errors.append(" ".join(why.split())[:500])


class Model:
    """A loaded model that is asked with the bytes of image files."""

    def __init__(self, saved_model: Path) -> None:
        """Load it. Raises RequestError with TensorFlow's text when that fails."""
        import_tensorflow()
        self._model = SavedModel(saved_model, SessionOptions())
        # Beam keeps it until the process ends; TensorFlow must still be whole when it is let go.
        weakref.finalize(self, self._model.close)
        signature = self._model.signatures[SIGNATURE]
        self._feed = signature.inputs[_INPUT].name
        self._fetches = {key: info.name for key, info in signature.outputs.items()}

    def predict(self, images: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Encoded images [N] → {"probabilities" float32 [N, C], "class_id" [N], "label" [N]}.

        Raises:
            RequestError: With the code INVALID_ARGUMENT when one of them is no image.
        """
        values = self._model.run([(self._feed, np.array(images, dtype=object))], list(self._fetches.values()))
        return dict(zip(self._fetches, values, strict=True))


def answer(model: Model, batch: Batch, answers: Answers) -> None:
    """Append the answers for a batch. A batch in which something is no image is halved until that stands alone."""
    if not all(isinstance(image, bytes) for _, image in batch):
        for is_readable, group in groupby(batch, key=lambda row: isinstance(row[1], bytes)):
            if is_readable:
                answer(model, list(group), answers)
            else:
                for path, why in group:
                    answers.fail(path, str(why))
        return
    try:
        outputs = model.predict([image for _, image in batch if isinstance(image, bytes)])
    except RequestError as error:
        if error.code != Code.INVALID_ARGUMENT:
            raise
        if len(batch) == 1:
            # What follows is TensorFlow's name for the place in its graph.
            answers.fail(batch[0][0], error.message.split("[[{{", maxsplit=1)[0])
            return
        half = len(batch) // 2
        answer(model, batch[:half], answers)
        answer(model, batch[half:], answers)
        return
    answers.paths += [path for path, _ in batch]
    answers.class_ids += outputs["class_id"].tolist()
    answers.labels += [label.decode() for label in outputs["label"].tolist()]
    answers.probabilities += list(outputs["probabilities"])
    answers.errors += [None] * len(batch)


def batches(shard: Shard, size: int) -> Iterator[Batch]:
    """The shard's images in batches; the next one is read while the one before is computed."""
    images = shard.images()

    def read() -> Batch:
        return list(islice(images, size))

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read)
        while batch := coming.result():
            coming = reader.submit(read)
            yield batch


class SavedModelHandler(ModelHandler[Shard, PredictionResult, Model]):
    """RunInference over shards: an element is a shard and not an image, so that what is finished is written at once.

    (With one image an element, a shard could be written only behind a GroupByKey, where every runner waits for all
    of the input: a run killed at 99 % would have kept nothing.)
    """

    def __init__(self, saved_model: str, *, batch_size: int) -> None:
        """Remember what to load; it is loaded once a worker."""
        super().__init__()
        self._saved_model, self._batch_size = saved_model, batch_size

    def load_model(self) -> Model:
        """Load the SavedModel."""
        return Model(Path(self._saved_model))

    def run_inference(
        self,
        batch: Sequence[Shard],
        model: Model,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002 - Beam's signature
    ) -> Iterator[PredictionResult]:
        """Answers for every image of every shard."""
        for shard in batch:
            answers = Answers()
            for images in batches(shard, self._batch_size):
                answer(model, images, answers)
            yield PredictionResult(shard, answers)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """One shard at a time: the batch of images is ours."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_metrics_namespace(self) -> str:
        """Name of Beam's counters."""
        return "isthmus.predict"
