"""bfloat16 baked into a frozen graph: one rewrite for both rungs.

What is computed in bfloat16 is written into the saved graph, so that every loader and every server does it,
whatever its session options. (TensorFlow's own `auto_mixed_precision_onednn_bfloat16` is an option of the
session; TensorFlow Serving does not set it.) The classification of operators follows its idea:

- matrix products and convolutions run in bfloat16, weights and activations; the kernels accumulate in float32;
- what only moves, clips or combines values does so in bfloat16 where all that it works on is bfloat16 already;
- all the rest stays float32: means, variances and roots (normalisation), softmax, exponentials;
- the last product, whose result is the logits, stays float32: logits of eight bits would make ties.

The function's input and output stay float32. Weights are stored in bfloat16, half the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

#: Where the time is spent.
PRODUCTS = frozenset(
    {"BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2D", "DepthwiseConv2dNative", "Einsum", "MatMul"}
)

#: They follow what they work on. All are of one type, attribute `T`.
FOLLOWERS = frozenset(
    {
        "Abs", "Add", "AddN", "AddV2", "AvgPool", "BatchToSpaceND", "BiasAdd", "BroadcastTo", "ConcatV2",
        "DepthToSpace", "Elu", "Erf", "ExpandDims", "Fill", "Identity", "LeakyRelu", "MaxPool", "Maximum",
        "Minimum", "MirrorPad", "Mul", "Neg", "Pack", "Pad", "PadV2", "Relu", "Relu6", "Reshape", "ReverseV2",
        "Roll", "Selu", "Sigmoid", "Slice", "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV", "Squeeze",
        "StridedSlice", "Sub", "Tanh", "Tile", "Transpose", "Unpack",
    }
)  # fmt: skip

_HALF = "bf16"
_FULL = "fp32"


def rewritten(graph: graph_pb2.GraphDef, *, output: str) -> graph_pb2.GraphDef:
    """A frozen graph (float32 in and out), its products in bfloat16.

    Args:
        graph: Without variables.
        output: Name of the operation that gives the logits.

    Returns:
        A graph with the same names. A float32 constant that nothing reads any more is left out.
    """
    imported = tf.Graph()
    with imported.as_default():
        tf.graph_util.import_graph_def(graph, name="")
    return _Rewriting(imported, output).result()


def in_half(graph: tf.Graph, *, output: str) -> set[str]:
    """Names of the operations that will run in bfloat16; the one that gives the logits is none of them."""
    chosen: set[str] = set()
    operations = graph.get_operations()
    constant = _constants(operations)
    last = last_products(operations) | {output}
    for operation in operations:
        if operation.name in constant or operation.name in last or not _is_float(operation):
            continue
        if operation.type in PRODUCTS:
            chosen.add(operation.name)
        elif operation.type in FOLLOWERS:
            worked_on = [
                tensor.op.name
                for tensor in operation.inputs
                if tensor.dtype == tf.float32 and tensor.op.name not in constant
            ]
            if worked_on and all(name in chosen for name in worked_on):
                chosen.add(operation.name)
    return chosen


def _is_float(operation: tf.Operation) -> bool:
    return "T" in operation.node_def.attr and operation.get_attr("T") == tf.float32


def _constants(operations: Iterable[tf.Operation]) -> set[str]:
    """Names of what is known without an input: constants, and what is computed from them alone."""
    known: set[str] = set()
    for operation in operations:
        computed = bool(operation.inputs) and all(tensor.op.name in known for tensor in operation.inputs)
        if operation.type == "Const" or computed:
            known.add(operation.name)
    return known


def last_products(operations: list[tf.Operation]) -> set[str]:
    """Names of the products after which no other comes: the classifier."""
    before_another: set[str] = set()
    for operation in reversed(operations):
        if operation.type in PRODUCTS or operation.name in before_another:
            before_another |= {tensor.op.name for tensor in operation.inputs}
    return {
        operation.name
        for operation in operations
        if operation.type in PRODUCTS and operation.name not in before_another
    }


class _Rewriting:
    """One rewrite; nodes are added where a value is needed in the other type, once for each."""

    def __init__(self, graph: tf.Graph, output: str) -> None:
        self._graph, self._output = graph, output
        self._chosen = in_half(graph, output=output)
        self._rewritten = graph_pb2.GraphDef(versions=graph.as_graph_def().versions)
        self._added: set[str] = set()

    def result(self) -> graph_pb2.GraphDef:
        """The whole graph."""
        for operation in self._graph.get_operations():
            node = graph_pb2.GraphDef().node.add()
            node.CopyFrom(operation.node_def)
            control = [name for name in node.input if name.startswith("^")]
            del node.input[:]
            if operation.name in self._chosen:
                node.attr["T"].type = tf.bfloat16.as_datatype_enum
            node.input.extend([*(self._input(operation, tensor) for tensor in operation.inputs), *control])
            self._rewritten.node.append(node)
        read = {name.removeprefix("^").split(":")[0] for node in self._rewritten.node for name in node.input}
        nodes = [
            node
            for node in self._rewritten.node
            if node.op != "Const" or node.name in read or node.name == self._output
        ]
        return graph_pb2.GraphDef(node=nodes, versions=self._rewritten.versions)

    def _input(self, operation: tf.Operation, tensor: tf.Tensor) -> str:
        """The name under which an operation reads a tensor, in the type that it wants."""
        name = tensor.name.removesuffix(":0")
        wants_half = operation.name in self._chosen and tensor.dtype == tf.float32
        if wants_half == (tensor.op.name in self._chosen) or tensor.dtype != tf.float32:
            return name
        if wants_half and tensor.op.type == "Const":
            return self._once(name, _HALF, lambda node: _half_constant(node, tensor.op))
        target = tf.bfloat16 if wants_half else tf.float32
        source = tf.float32 if wants_half else tf.bfloat16
        return self._once(
            name, _HALF if wants_half else _FULL, lambda node: _cast(node, name, source=source, target=target)
        )

    def _once(self, name: str, suffix: str, fill: Callable[[Any], None]) -> str:
        added = f"{name.replace(':', '_')}/{suffix}"
        if added not in self._added:
            self._added.add(added)
            node = graph_pb2.GraphDef().node.add(name=added)
            fill(node)
            self._rewritten.node.append(node)
        return added


def _cast(node: Any, name: str, *, source: tf.DType, target: tf.DType) -> None:
    node.op = "Cast"
    node.input.append(name)
    node.attr["SrcT"].type = source.as_datatype_enum
    node.attr["DstT"].type = target.as_datatype_enum


def _half_constant(node: Any, constant: tf.Operation) -> None:
    values = tf.make_ndarray(constant.get_attr("value"))
    node.op = "Const"
    node.attr["dtype"].type = tf.bfloat16.as_datatype_enum
    half = tf.make_tensor_proto(values.astype(tf.bfloat16.as_numpy_dtype), shape=values.shape)
    node.attr["value"].tensor.CopyFrom(half)
