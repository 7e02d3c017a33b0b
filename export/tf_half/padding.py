"""Padding of maximum pooling with the lowest float, made harmless for LiteRT's int8.

ONNX pads a maximum pooling with minus infinity; in TensorFlow that is a PadV2 with -3.4e38. LiteRT's quantizer
takes the value into the activation's range: a scale of 1e36, which XNNPACK refuses to load and the built-in kernels
abort the process on. The lowest value that the calibration images give there pads as well: in 8 bits nothing lower
can be told from it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from isthmus.export.reduced import Evaluation, in_chunks

_LOWEST = -1e30
_CHUNK = 8


def bounded(graph: graph_pb2.GraphDef, *, image: str, calibration: Evaluation) -> graph_pb2.GraphDef:
    """The frozen graph with each such padding value replaced; the same object where there is none.

    Args:
        graph: Without variables.
        image: Name of the input tensor.
        calibration: Images like those that the model will see.
    """
    imported = tf.Graph()
    with imported.as_default():
        tf.graph_util.import_graph_def(graph, name="")
    padded = {
        operation.name: operation.inputs[0]
        for operation in imported.get_operations()
        if operation.type == "PadV2" and _value(operation.inputs[2]) < _LOWEST
    }
    if not padded:
        return graph
    lowest = dict.fromkeys(padded, np.inf)
    with tf.compat.v1.Session(graph=imported) as session:
        for rows in in_chunks(calibration, _CHUNK):
            for name, values in session.run(padded, {image: calibration.images(rows)}).items():
                lowest[name] = min(lowest[name], float(values.min()))
    result = graph_pb2.GraphDef()
    result.CopyFrom(graph)
    for node in list(result.node):
        if node.name in padded:
            constant = result.node.add(name=f"{node.name}/lowest", op="Const")
            constant.attr["dtype"].type = tf.float32.as_datatype_enum
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.float32(lowest[node.name])))
            node.input[2] = constant.name
    return result


def _value(tensor: tf.Tensor) -> float:
    return float(tf.make_ndarray(tensor.op.get_attr("value"))) if tensor.op.type == "Const" else 0.0
