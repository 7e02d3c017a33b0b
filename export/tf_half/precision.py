"""Reduced precision, baked into the graph between lowering and saving: the same step for both rungs.

docs/precision.md says what each precision is, what was tried, and what it costs and gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from isthmus.export.config import Precision
from isthmus.export.reduced import Evaluation
from isthmus.export.tf_half import bfloat16, integers, padding

LogitsFn = Callable[[tf.Tensor], tf.Tensor]


def reduced(
    logits_fn: LogitsFn,
    *,
    precision: Precision,
    input_size: Sequence[int],
    calibration: Evaluation | None = None,
) -> LogitsFn:
    """The same model in another precision; fp32 is the model itself.

    Args:
        logits_fn: float32 [N, height, width, 3] -> float32 [N, C]; what `lowering.lower` returns.
        precision: of the products.
        input_size: [3, height, width].
        calibration: int8 takes the ranges of activations from these images.

    Returns:
        A function with the same interface.
    """
    if precision == "fp32":
        return logits_fn
    _, height, width = input_size
    graph, input_name, output_name = frozen(logits_fn, height=height, width=width)
    if precision == "bf16":
        graph = bfloat16.rewritten(graph, output=output_name.split(":")[0])
    else:
        assert calibration is not None, "the torch half writes it for int8"
        graph = integers.rewritten(
            graph, image=input_name, output=output_name.split(":")[0], calibration=calibration
        )

    return _function(graph, input_name, output_name)


def for_litert_int8(logits_fn: LogitsFn, *, input_size: Sequence[int], calibration: Evaluation) -> LogitsFn:
    """The fp32 model in a form that LiteRT's quantizer finds sensible ranges for; see padding.py."""
    _, height, width = input_size
    graph, input_name, output_name = frozen(logits_fn, height=height, width=width)
    return _function(
        padding.bounded(graph, image=input_name, calibration=calibration), input_name, output_name
    )


def _function(graph: graph_pb2.GraphDef, input_name: str, output_name: str) -> LogitsFn:
    def logits(images: tf.Tensor) -> tf.Tensor:
        (answer,) = tf.graph_util.import_graph_def(
            graph, input_map={input_name: images}, return_elements=[output_name], name=""
        )
        return answer

    return logits


def frozen(logits_fn: LogitsFn, *, height: int, width: int) -> tuple[graph_pb2.GraphDef, str, str]:
    """(graph with constants only, name of its input tensor, name of its output tensor); N is dynamic."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        return tf.identity(logits_fn(images), name="reduced_logits")

    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    traced = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    function = convert_variables_to_constants_v2(traced)
    return function.graph.as_graph_def(), function.inputs[0].name, function.outputs[0].name
