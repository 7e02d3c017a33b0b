"""Warm-up requests: what a server runs once after loading a model, so that no user pays for the first call.

TensorFlow Serving reads `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog`, at
most 1,000 of them. The first call of each batch size plans and packs kernels for it, so each size gets a
record.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

MAX_RECORDS = 1000
FILE_NAME = "tf_serving_warmup_requests"


def write(
    file: Path, *, batch_sizes: Sequence[int], sample_images: Sequence[bytes], height: int, width: int
) -> None:
    """Write a record of `serving_default` and of `tensors` for each batch size.

    Args:
        file: where to; its folder exists.
        batch_sizes: the batch sizes that will be served.
        sample_images: encoded images of the data set, repeated as often as needed.
        height, width: of the `tensors` signature's images.
    """

    def record(signature: str, name: str, value: tensor_pb2.TensorProto) -> bytes:
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = signature
        request.inputs[name].CopyFrom(value)
        log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
        return log.SerializeToString(deterministic=True)

    def images_of(size: int) -> tensor_pb2.TensorProto:
        return tf.make_tensor_proto(list(itertools.islice(itertools.cycle(sample_images), size)), tf.string)

    def zeros_of(size: int) -> tensor_pb2.TensorProto:
        # One value stands for all of them: the record stays small whatever the batch.
        shape = tf.TensorShape([size, height, width, 3]).as_proto()
        return tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, tensor_shape=shape, float_val=[0.0])

    with tf.io.TFRecordWriter(str(file)) as writer:
        for size in sorted(set(batch_sizes))[: MAX_RECORDS // 2]:
            writer.write(record("serving_default", "image_bytes", images_of(size)))
            writer.write(record("tensors", "images", zeros_of(size)))
