"""Replays a model's own warm-up requests before its version becomes AVAILABLE (saved_model_warmup.cc).

`assets.extra/tf_serving_warmup_requests` is a TFRecord file of tensorflow.serving.PredictionLog, at most 1000
records: Predict, Classify, Regress and MultiInference requests. Their answers are not compared with anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.serving import inference, tensors
from isthmus.serving.errors import RequestError
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.status import Code

__all__ = ["WARMUP_FILE", "records", "replay", "write"]

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_NUM_RECORDS = 1000


def replay(model: LoadedModel, *, num_iterations: int = 1) -> int:
    """Run every record num_iterations times; the number of records.

    Raises:
        RequestError: the file is unreadable or too long, or a record's request fails; the version must not
            serve.
    """
    path = model.path / WARMUP_FILE
    if not path.is_file():
        return 0
    num_records = 0
    for log in records(path):
        num_records += 1
        if num_records > MAX_NUM_RECORDS:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({MAX_NUM_RECORDS}) at {path}",
            )
        for _ in range(num_iterations):
            _run(model, log)
    return num_records


def write(path: Path, rows: Sequence[Mapping[str, Any]], batch_sizes: Sequence[int], *, name: str) -> None:
    """Write a file with one request of each batch size.

    Args:
        path: the file.
        rows: arrays of one row each, by input alias of the default signature; repeated as often as needed.
        batch_sizes: rows of each record.
        name: the model's name in the records.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in batch_sizes:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            for alias in rows[0]:
                batch = np.concatenate([rows[index % len(rows)][alias] for index in range(size)])
                tensors.fill_proto(request.inputs[alias], batch, as_content=True)
            writer.write(log.SerializeToString(deterministic=True))


def records(path: Path) -> Iterator[Any]:
    """The PredictionLogs of a warm-up file.

    Raises:
        RequestError: the file is not there, or is none.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except tf.errors.OpError as error:
        raise RequestError(
            Code(error.error_code), f"{error.message}; Please verify your warmup data is in TFRecord format."
        ) from error
    except DecodeError as error:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"Failed to parse warmup record: {error} from {path}"
        ) from error


def _run(model: LoadedModel, log: Any) -> None:
    from isthmus.serving import examples

    kind, options = log.WhichOneof("log_type"), inference.CallOptions()
    if kind in (None, "predict_streamed_log"):
        # Passed over, as the original does for what is newer than its runner of sessions.
        return
    request = getattr(log, kind).request
    if kind == "predict_log":
        inference.predict_from_protos(
            model, request.model_spec.signature_name, request.inputs, request.output_filter, options
        )
    elif kind == "classify_log":
        examples.classify(model, request.model_spec.signature_name, request.input, options)
    elif kind == "regress_log":
        examples.regress(model, request.model_spec.signature_name, request.input, options)
    elif kind == "multi_inference_log":
        examples.multi_inference(model, request, 0, options)
    else:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise RequestError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
