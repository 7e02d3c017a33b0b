"""A lowered model apart from its weights: what TensorFlow copies when it saves, loads and optimises holds none.

TensorFlow copies a graph's constants again and again: into the graph of every signature, into the runtime's library,
into each proto that saving makes of those, and when the model is loaded once more for every signature and optimiser.
With VGG-11's 507 MiB as constants the v1 loader took 4.1 GiB, each signature 1.4 GiB more and 30 seconds for its
first answer; with variables 0.6 GiB in all, and 0.4 seconds. So a weight is saved as a variable, of which there is
one, unless a constant is faster:

- The filter of a convolution. oneDNN turns a filter into the layout of its kernel; of a constant once, of a variable
  in every call (resnet50 at batch 1: 1.11 of the time; VGG-11: 2.9). A matrix product reads its weights as they are.
  Filters stay constants up to `FILTER_BYTES` in all, the smallest first.
- What is only read together with constants: TensorFlow folds it into one constant when the model is loaded.

The constants that are large leave the graph while it is traced and saved; stand-ins of the same type and shape hold
no values, and `restore` puts the weights into the saved proto. In between the function gives no meaningful numbers.
"""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2, tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from isthmus.export.tf_half.frozen import FrozenGraph, LogitsFn, freeze

#: Of filters that stay constants: loading takes some ten times as much. resnet50 has 98 MiB, VGG-11 35.
FILTER_BYTES = 128 << 20

#: On each stand-in: the place of its tensor among the weights. TensorFlow keeps attributes with such names.
_MARK = "_isthmus_weight"
#: Smaller constants stay as they are: shapes are inferred from their values.
_SMALLEST_BYTES = 16 << 10
_VARIABLE_TYPES = frozenset({tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum})


@dataclass(kw_only=True, eq=False)
class Weightless:
    """A traced model, its weights apart."""

    function: Any
    """Concrete function: float32 [N, H, W, 3] -> [logits float32 [N, C]]. Only its shapes mean anything."""

    variables: list[tf.Variable]
    """What the function captures; whoever saves it has to keep them among the attributes of a `tf.Module`."""

    constants: list[tensor_pb2.TensorProto]
    """What `restore` puts back, and then is gone from here."""

    def restore(self, saved: saved_model_pb2.SavedModel) -> None:
        """Put the constants into a saved proto that holds the function once.

        Raises:
            ValueError: Some constant has no place in the proto, or two.
        """
        left: dict[int, tensor_pb2.TensorProto] = dict(enumerate(self.constants))
        self.constants.clear()
        for node in _nodes(saved):
            if _MARK in node.attr:
                place = node.attr[_MARK].i
                if place not in left:
                    raise ValueError(f"the SavedModel holds constant {place} more than once")
                # Each is let go of as it is copied: there is never a second copy of them all.
                node.attr["value"].tensor.CopyFrom(left.pop(place))
                del node.attr[_MARK]
        if left:
            raise ValueError(f"{len(left)} constants have no place in the SavedModel")


def _nodes(saved: saved_model_pb2.SavedModel) -> Iterator[node_def_pb2.NodeDef]:
    for meta_graph in saved.meta_graphs:
        yield from meta_graph.graph_def.node
        for function in meta_graph.graph_def.library.function:
            yield from function.node_def


def trace(logits_fn: LogitsFn, *, height: int, width: int) -> Weightless:
    """Trace `logits_fn` for float32 [N, height, width, 3] with N dynamic, and take its weights out."""
    frozen = freeze(logits_fn, height=height, width=width)
    del logits_fn
    # The graph that this proto came from holds the weights once more, in reference cycles.
    gc.collect()
    variables = _moved_to_variables(frozen.graph)
    constants = _lifted(frozen.graph)
    frozen = FrozenGraph(
        graph=frozen.graph,
        image=frozen.image,
        logits=frozen.logits,
        instead={name: variable.read_value for name, variable in variables.items()},
    )
    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    function = tf.function(
        lambda images: [frozen(images)], input_signature=[spec], autograph=False
    ).get_concrete_function()
    return Weightless(function=function, variables=list(variables.values()), constants=constants)


def _moved_to_variables(graph: graph_pb2.GraphDef) -> dict[str, tf.Variable]:
    """Name of a tensor -> the variable that has its value from now on; the graph loses it, in place."""
    moved: dict[str, tf.Variable] = {}
    for node in _chosen(graph):
        tensor = node.attr["value"].tensor
        # The name is seen in the checkpoint of a SavedModel that a v1 session writes, and has to be unique.
        name = re.sub(r"[^A-Za-z0-9_./-]", "_", f"weights/{len(moved)}/{node.name}")
        moved[f"{node.name}:0"] = tf.Variable(tf.make_ndarray(tensor), trainable=False, name=name)
        tensor.ClearField("tensor_content")
    return moved


def _chosen(graph: graph_pb2.GraphDef) -> list[node_def_pb2.NodeDef]:
    """The constants that become variables; the module's text says which."""
    large = {node.name: node for node in graph.node if _is_large(node)}
    constant = {node.name for node in graph.node if node.op == "Const"}
    readers: dict[str, list[node_def_pb2.NodeDef]] = defaultdict(list)
    for reader in graph.node:
        for name in {name.split(":")[0] for name in reader.input} & large.keys():
            readers[name].append(reader)

    def is_folded(reader: node_def_pb2.NodeDef) -> bool:
        return all(name.split(":")[0] in constant for name in reader.input)

    movable: list[node_def_pb2.NodeDef] = []
    filters: list[node_def_pb2.NodeDef] = []
    for name, node in large.items():
        if node.attr["dtype"].type not in _VARIABLE_TYPES or any(map(is_folded, readers[name])):
            continue
        is_filter = any("Conv" in reader.op for reader in readers[name])
        (filters if is_filter else movable).append(node)
    bytes_of_constants = 0
    for node in sorted(filters, key=_num_bytes):
        bytes_of_constants += _num_bytes(node)
        if bytes_of_constants > FILTER_BYTES:
            movable.append(node)
    return movable


def _is_large(node: node_def_pb2.NodeDef) -> bool:
    return node.op == "Const" and _num_bytes(node) >= _SMALLEST_BYTES


def _num_bytes(node: node_def_pb2.NodeDef) -> int:
    return len(node.attr["value"].tensor.tensor_content)


def _lifted(graph: graph_pb2.GraphDef) -> list[tensor_pb2.TensorProto]:
    """Take the large constants out of a graph, in place."""
    constants: list[tensor_pb2.TensorProto] = []
    for node in graph.node:
        if not _is_large(node):
            continue
        tensor = tensor_pb2.TensorProto()
        tensor.CopyFrom(node.attr["value"].tensor)
        constants.append(tensor)
        node.attr["value"].tensor.ClearField("tensor_content")
        node.attr[_MARK].CopyFrom(attr_value_pb2.AttrValue(i=len(constants) - 1))
    return constants
