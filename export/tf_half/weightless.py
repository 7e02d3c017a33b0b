"""A lowered model apart from its weights: what TensorFlow copies when it saves, loads and optimises holds none.

TensorFlow copies a function's constants again and again: into the graph of every signature, into the runtime's library,
into each proto that saving makes of those, and when the model is loaded once more for every signature and optimiser.
With VGG-11's 507 MiB as constants of the function the v1 loader took 4.1 GiB, each signature 1.4 GiB more and 30
seconds for its first answer; as it is saved now 0.6 GiB in all, and a second. So no large constant stays in the
function. What it reads instead is one of two:

- A variable, of which there is one for all signatures.
- A captured constant, which stands once in the outermost graph. TensorFlow Serving inlines the signature around it, so
  that it is a constant to the optimisers again. That is for filters of convolutions: oneDNN turns a filter into the
  layout of its kernel, of a constant once, of a variable in every call (resnet50 at batch 1: 1.11 of the time; VGG-11:
  2.9). A matrix product reads its weights as they are. And it is for what is only read together with constants,
  which TensorFlow folds into one when the model is loaded, and for integers. To `tf.saved_model.load`, which does not
  inline, it is like a variable.

Each signature that is asked still takes some 2.7 times the captured constants, so filters are captured up to
`FILTER_BYTES` in all, the smallest first.
"""

from __future__ import annotations

import functools
import gc
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2

from isthmus.export.tf_half.frozen import FrozenGraph, LogitsFn, freeze

#: Of filters that are captured constants. resnet50 has 98 MiB, VGG-11 35.
FILTER_BYTES = 128 << 20

#: Smaller constants stay as they are: shapes are inferred from their values.
_SMALLEST_BYTES = 16 << 10
_VARIABLE_TYPES = frozenset({tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum})


@dataclass(kw_only=True, eq=False)
class Weightless:
    """A traced model, its weights apart."""

    function: Any
    """Concrete function: float32 [N, H, W, 3] -> [logits float32 [N, C]]."""

    variables: list[tf.Variable]
    """What it captures besides constants; whoever saves it has to keep them among the attributes of a `tf.Module`."""


def trace(logits_fn: LogitsFn, *, height: int, width: int) -> Weightless:
    """Trace `logits_fn` for float32 [N, height, width, 3] with N dynamic, and take its weights out."""
    frozen = freeze(logits_fn, height=height, width=width)
    del logits_fn
    # The graph that this proto came from holds the weights once more, in reference cycles.
    gc.collect()
    variables: list[tf.Variable] = []
    instead: dict[str, Callable[[], tf.Tensor]] = {}
    movable = {node.name for node in _movable(frozen.graph)}
    for node in filter(_is_large, frozen.graph.node):
        tensor = node.attr["value"].tensor
        value = tf.make_ndarray(tensor)
        # Each is let go of as it is copied: there is never a second copy of them all.
        tensor.ClearField("tensor_content")
        if node.name in movable:
            # The name is seen in checkpoints that a v1 session writes, and has to be unique.
            name = re.sub(r"[^A-Za-z0-9_./-]", "_", f"weights/{len(variables)}/{node.name}")
            variables.append(tf.Variable(value, trainable=False, name=name))
            instead[f"{node.name}:0"] = variables[-1].read_value
        else:
            # Read inside a function, an eager tensor is captured.
            instead[f"{node.name}:0"] = functools.partial(tf.identity, tf.constant(value))
    apart = FrozenGraph(graph=frozen.graph, image=frozen.image, logits=frozen.logits, instead=instead)
    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    function = tf.function(
        lambda images: [apart(images)], input_signature=[spec], autograph=False
    ).get_concrete_function()
    return Weightless(function=function, variables=variables)


def _movable(graph: graph_pb2.GraphDef) -> list[node_def_pb2.NodeDef]:
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
