"""The prediction log: a sample of requests and answers, as TFRecord files of tensorflow.serving.PredictionLog.

What the pipeline compares with its training data (skew, drift), and what warm-up files are made of. A file is
written under a name that ends in .part and renamed when it is complete; names are made of time and process id,
never of what a client sent.
"""

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.serving import tensors
from isthmus.serving.background_writer import BackgroundWriter
from isthmus.serving.errors import ServingError

__all__ = ["PredictionLog"]

_MAX_FILE_BYTES = 64 * 2**20
_MAX_FILE_SECONDS = 600.0
# Beyond this a single entry is left out: it would hold up the rest.
_MAX_RECORD_BYTES = 16 * 2**20
_MAX_WAITING = 256


class PredictionLog:
    """Samples requests and writes them.

    Args:
        folder: where the files go; made if need be.
        sampling_rate: share of the requests that is written, 0 to 1.

    Raises:
        ServingError: the folder cannot be made, or the rate is no share.
    """

    def __init__(self, folder: Path, sampling_rate: float) -> None:
        if not 0.0 <= sampling_rate <= 1.0:
            raise ServingError(
                f"--prediction_log_sampling_rate must lie between 0 and 1; got {sampling_rate:g}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServingError(
                f"cannot make the prediction log's folder {folder}: {error.strerror}"
            ) from error
        self._folder, self._rate = folder, sampling_rate
        self._file: Any = None
        self._part, self._size, self._opened, self._number = folder, 0, 0.0, 0
        self._writer: BackgroundWriter[Any] = BackgroundWriter(
            "prediction log", self._write, self._close, max_waiting=_MAX_WAITING
        )

    @property
    def num_written(self) -> int:
        """Requests written so far."""
        return self._writer.num_written

    @property
    def num_lost(self) -> int:
        """Sampled requests that could not be written."""
        return self._writer.num_lost

    def is_sampled(self) -> bool:
        """Whether this request is one of the sample."""
        return random.random() < self._rate

    def predict(self, request: Any, response: Any) -> None:
        """A Predict request and its answer."""
        self._offer("predict_log", request, response)

    def predict_arrays(self, spec: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """A predict over REST; spec is the tensorflow.serving.ModelSpec that answered."""
        from tensorflow_serving.apis import predict_pb2

        request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
        request.model_spec.CopyFrom(spec)
        response.model_spec.CopyFrom(spec)
        for protos, arrays in ((request.inputs, inputs), (response.outputs, outputs)):
            for alias, array in arrays.items():
                tensors.fill_proto(protos[alias], array, as_content=True)
        self._offer("predict_log", request, response)

    def classify(self, request: Any, response: Any) -> None:
        """A Classify request and its answer."""
        self._offer("classify_log", request, response)

    def regress(self, request: Any, response: Any) -> None:
        """A Regress request and its answer."""
        self._offer("regress_log", request, response)

    def stop(self) -> None:
        """Write what waits, and complete the file."""
        self._writer.stop()

    def _offer(self, kind: str, request: Any, response: Any) -> None:
        from tensorflow_serving.apis import prediction_log_pb2

        log = prediction_log_pb2.PredictionLog()
        part = getattr(log, kind)
        part.request.CopyFrom(request)
        part.response.CopyFrom(response)
        log.log_metadata.model_spec.CopyFrom(response.model_spec)
        log.log_metadata.sampling_config.sampling_rate = self._rate
        self._writer.offer(log)

    # ---- the writer's thread ----

    def _write(self, log: Any) -> None:
        import tensorflow as tf

        record = log.SerializeToString()
        if len(record) > _MAX_RECORD_BYTES:
            raise ValueError(f"an entry of {len(record)} bytes exceeds {_MAX_RECORD_BYTES}")
        is_old = time.monotonic() - self._opened > _MAX_FILE_SECONDS
        if self._file is not None and (is_old or self._size + len(record) > _MAX_FILE_BYTES):
            self._close()
        try:
            if self._file is None:
                self._open()
            self._file.write(record)
            # Else a small record "succeeds" into a buffer on a full disk, and is lost later without a word.
            self._file.flush()
        except tf.errors.OpError as error:
            self._abandon()
            raise OSError(error.message) from error
        self._size += len(record)

    def _open(self) -> None:
        import tensorflow as tf

        self._number += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._part = self._folder / f"predictions-{stamp}-{os.getpid()}-{self._number:04d}.tfrecord.part"
        self._file = tf.io.TFRecordWriter(str(self._part))
        self._size, self._opened = 0, time.monotonic()

    def _close(self) -> None:
        import tensorflow as tf

        if self._file is None:
            return
        try:
            self._file.close()
        except tf.errors.OpError as error:
            self._abandon()
            raise OSError(error.message) from error
        self._file = None
        self._part.rename(self._part.with_suffix(""))

    def _abandon(self) -> None:
        """Leave nothing of a file that could not be written: a full disk would fill up with empty ones."""
        self._file = None
        self._part.unlink(missing_ok=True)
