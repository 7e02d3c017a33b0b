"""A model as one plain graph, its weights constants: what the steps between lowering and saving work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
"""float32 [N, height, width, 3] -> float32 [N, C], N dynamic; to be traced."""


@dataclass(kw_only=True, eq=False)
class FrozenGraph:
    """A graph without variables and functions; as a function of images it is a `LogitsFn`."""

    graph: graph_pb2.GraphDef
    """Of nodes with unique names."""
    image: str
    """Name of the input tensor."""
    logits: str
    """Name of the output tensor."""
    instead: Mapping[str, Callable[[], tf.Tensor]] = field(default_factory=dict)
    """Name of a tensor of the graph -> what makes the tensor that is read in its place."""

    @property
    def output_node(self) -> str:
        """Name of the node that gives the logits."""
        return self.logits.split(":")[0]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Emit the graph into the one that is being traced."""
        given = {name: make() for name, make in self.instead.items()}
        (answer,) = tf.graph_util.import_graph_def(
            self.graph, input_map={self.image: images, **given}, return_elements=[self.logits], name=""
        )
        return answer


def freeze(logits_fn: LogitsFn, *, height: int, width: int) -> FrozenGraph:
    """Trace a function for images of one size, and turn its variables, if it has any, into constants."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        return tf.identity(tf.cast(logits_fn(images), tf.float32), name="logits")

    # Not a tf.function where it can be helped: it would give the runtime a copy of the weights.
    graph = tf.__internal__.FuncGraph("logits")
    with graph.as_default():
        images = tf.raw_ops.Placeholder(dtype=tf.float32, shape=[None, height, width, 3], name="images")
        answer = logits(images)
    if not graph.captures:
        proto = graph.as_graph_def()
        if not proto.library.function:
            return FrozenGraph(graph=proto, image=images.name, logits=answer.name)
    spec = tf.TensorSpec([None, height, width, 3], tf.float32, name="images")
    traced = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    function = convert_variables_to_constants_v2(traced)
    return FrozenGraph(
        graph=_constants_read_directly(function.graph.as_graph_def()),
        image=function.inputs[0].name,
        logits=function.outputs[0].name,
    )


def _constants_read_directly(graph: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    """Take out the Identity that each read of a variable has become, in place; its constant needs no control."""
    constant = {node.name: node.name for node in graph.node if node.op == "Const"}
    # In the order in which functions are written down, an operator stands behind what it reads.
    for node in graph.node:
        if node.op == "Identity" and node.input[0].removesuffix(":0") in constant:
            constant[node.name] = constant[node.input[0].removesuffix(":0")]
    read = {name: source for name, source in constant.items() if name != source}
    for number in reversed(range(len(graph.node))):
        if graph.node[number].name in read:
            del graph.node[number]
    for node in graph.node:
        inputs = [
            name for name in node.input if name.removeprefix("^") not in read or not name.startswith("^")
        ]
        node.input[:] = [read.get(name.removesuffix(":0"), name) for name in inputs]
    return graph
