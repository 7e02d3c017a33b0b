"""A lowered model without its weights: what is traced, called and saved, until the weights come back at the end.

TensorFlow copies a function's constants again and again: into the graph of every signature that calls it, into
the runtime's library, into each graph and proto that saving makes of those. Measured on swin_tiny (105 MB of
weights) the process went up to 4.6 GB, on beit_base (327 MB) to 13 GB. So large constants are taken out of
the traced graph, a stand-in of the same type and shape that holds no values stays, and `restore` puts them into
the saved proto. In between the function gives no meaningful numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2, tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

#: On each stand-in: the place of its tensor among the weights. TensorFlow keeps attributes with such names.
_MARK = "_isthmus_weight"
#: Smaller constants stay: shapes are inferred from their values.
_SMALLEST_BYTES = 16 << 10


@dataclass(kw_only=True, eq=False)
class Weightless:
    """A traced model, its weights apart."""

    function: Any
    """Concrete function: float32 [N, H, W, 3] -> [logits float32 [N, C]]. Only its shapes mean anything."""

    weights: list[tensor_pb2.TensorProto]
    """What `restore` puts back, and then is gone from here."""

    def restore(self, saved: saved_model_pb2.SavedModel) -> None:
        """Put the weights into a saved proto that holds the function once.

        Raises:
            ValueError: Some weight has no place in the proto, or two.
        """
        left: dict[int, tensor_pb2.TensorProto] = dict(enumerate(self.weights))
        self.weights.clear()
        for node in _nodes(saved):
            if _MARK in node.attr:
                place = node.attr[_MARK].i
                if place not in left:
                    raise ValueError(f"the SavedModel holds weight {place} more than once")
                # Each is let go of as it is copied: there is never a second copy of them all.
                node.attr["value"].tensor.CopyFrom(left.pop(place))
                del node.attr[_MARK]
        if left:
            raise ValueError(f"{len(left)} weights have no place in the SavedModel")


def _nodes(saved: saved_model_pb2.SavedModel) -> Iterator[node_def_pb2.NodeDef]:
    for meta_graph in saved.meta_graphs:
        yield from meta_graph.graph_def.node
        for function in meta_graph.graph_def.library.function:
            yield from function.node_def


def trace(logits_fn: Callable[[tf.Tensor], tf.Tensor], *, height: int, width: int) -> Weightless:
    """Trace `logits_fn` for float32 [N, height, width, 3] with N dynamic, its weights constants, and lift them out.

    Constants let TensorFlow fold, fuse and pre-pack the weights when the model is loaded.
    """
    graph, input_name, output_name = _traced(logits_fn, height=height, width=width)
    # The graph that this proto came from holds the weights once more, in reference cycles.
    gc.collect()
    weights = _lifted(graph)

    def logits(images: tf.Tensor) -> list[tf.Tensor]:
        return list(
            tf.graph_util.import_graph_def(
                graph, input_map={input_name: images}, return_elements=[output_name], name=""
            )
        )

    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    function = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    return Weightless(function=function, weights=weights)


def _traced(
    logits_fn: Callable[[tf.Tensor], tf.Tensor], *, height: int, width: int
) -> tuple[graph_pb2.GraphDef, str, str]:
    """(graph without variables and functions, name of its input, name of its output)."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        return tf.identity(tf.cast(logits_fn(images), tf.float32), name="logits")

    # Not a tf.function: it would give the runtime a copy of its own.
    graph = tf.__internal__.FuncGraph("logits")
    with graph.as_default():
        images = tf.raw_ops.Placeholder(dtype=tf.float32, shape=[None, height, width, 3], name="images")
        answer = logits(images)
    if not graph.captures:
        proto = graph.as_graph_def()
        if not proto.library.function:
            return proto, images.name, answer.name
    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    function = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    frozen = convert_variables_to_constants_v2(function)
    return frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name


def _lifted(graph: graph_pb2.GraphDef) -> list[tensor_pb2.TensorProto]:
    """Take the large constants out of a graph, in place."""
    weights: list[tensor_pb2.TensorProto] = []
    for node in graph.node:
        if node.op != "Const" or len(node.attr["value"].tensor.tensor_content) < _SMALLEST_BYTES:
            continue
        tensor = tensor_pb2.TensorProto()
        tensor.CopyFrom(node.attr["value"].tensor)
        weights.append(tensor)
        node.attr["value"].tensor.ClearField("tensor_content")
        node.attr[_MARK].CopyFrom(attr_value_pb2.AttrValue(i=len(weights) - 1))
    return weights
