"""What the rewrites share: who reads a value, and whether a constant is what a pattern wants."""

from __future__ import annotations

import numpy as np

from isthmus.export.tf_half.direct.graph import INTERNAL_DOMAIN, Dims, Graph, Node


class Uses:
    """Producers and readers of every value, as of now."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._producers = graph.producers()
        self._consumers = graph.consumers()

    def producer(self, name: str, *op_types: str) -> Node | None:
        """The node that computes a value, if it is of one of the types."""
        node = self._producers.get(name)
        return node if node is not None and node.op_type in op_types else None

    def readers(self, name: str) -> list[Node]:
        """Nodes that read a value."""
        return self._consumers.get(name, [])

    def only_reader(self, name: str, *op_types: str) -> Node | None:
        """The node that alone reads a value, if it is of one of the types (of any, when none is given)."""
        readers = self._consumers.get(name, [])
        if len(readers) != 1 or name in self.graph.outputs:
            return None
        return readers[0] if not op_types or readers[0].op_type in op_types else None


def other_input(node: Node, name: str) -> str:
    """The second operand of a binary operator, given the first."""
    first, second = node.inputs
    return second if first == name else first


def scalar(graph: Graph, name: str) -> float | None:
    """The number behind a constant with one element."""
    array = graph.constant(name)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def is_scalar(graph: Graph, name: str, wanted: float) -> bool:
    """Whether a value is the given number up to float32's rounding."""
    found = scalar(graph, name)
    return found is not None and bool(np.isclose(found, wanted, rtol=1e-6, atol=0))


def rename(graph: Graph, old: str, new: str) -> None:
    """Make every reader of `old` read `new`."""
    for node in graph.nodes:
        node.inputs = [new if name == old else name for name in node.inputs]
    graph.outputs = [new if name == old else name for name in graph.outputs]


def replace(graph: Graph, old: Node, new: Node) -> None:
    """Put a node in another's place; what else the old pattern held is pruned when nobody reads it."""
    graph.nodes[graph.nodes.index(old)] = new


def internal_node(
    op_type: str, like: Node, inputs: list[str], outputs: list[str], dims: Dims, **attrs: object
) -> Node:
    """An operator of our own, named after the node it comes from."""
    return Node(
        op_type=op_type,
        domain=INTERNAL_DOMAIN,
        inputs=inputs,
        outputs=outputs,
        attrs=dict(attrs),
        name=like.name,
        opset=like.opset,
        out_dims=(dims,),
    )
