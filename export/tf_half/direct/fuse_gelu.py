"""The erf formula of GELU, in the orders in which exporters write it, becomes one operator."""

from __future__ import annotations

import math

from isthmus.export.tf_half.direct.graph import Graph, Node
from isthmus.export.tf_half.direct.matching import Uses, internal_node, is_scalar, other_input, replace


def fuse_gelu(graph: Graph) -> None:
    """x * 0.5 * (1 + erf(x / sqrt(2))), whichever product is taken first."""
    uses = Uses(graph)
    for erf in [node for node in graph.nodes if node.op_type == "Erf" and not node.domain]:
        found = _match(graph, uses, erf)
        if found is not None:
            source, last = found
            dims = graph.dims(last.outputs[0])
            replace(graph, last, internal_node("Gelu", last, [source], last.outputs, dims))


def _match(graph: Graph, uses: Uses, erf: Node) -> tuple[str, Node] | None:
    """(name of x, the last node of the formula)."""
    source = _scaled_source(graph, uses, erf.inputs[0])
    plus_one = uses.only_reader(erf.outputs[0], "Add")
    if source is None or plus_one is None or not is_scalar(graph, other_input(plus_one, erf.outputs[0]), 1.0):
        return None
    product = uses.only_reader(plus_one.outputs[0], "Mul")
    if product is None:
        return None
    return _with_half(graph, uses, source, product, other_input(product, plus_one.outputs[0]))


def _with_half(graph: Graph, uses: Uses, source: str, product: Node, other: str) -> tuple[str, Node] | None:
    """Find the factor 0.5: in `other`, the product's second factor, or in the product after it."""
    half = uses.producer(other, "Mul")
    if half is not None and source in half.inputs and is_scalar(graph, other_input(half, source), 0.5):
        return source, product
    last = uses.only_reader(product.outputs[0], "Mul")
    if last is None:
        return None
    final = other_input(last, product.outputs[0])
    halved = (other == source and is_scalar(graph, final, 0.5)) or (
        final == source and is_scalar(graph, other, 0.5)
    )
    return (source, last) if halved else None


def _scaled_source(graph: Graph, uses: Uses, name: str) -> str | None:
    """x when the value is x / sqrt(2)."""
    node = uses.producer(name, "Div", "Mul")
    if node is None:
        return None
    if node.op_type == "Div":
        return node.inputs[0] if is_scalar(graph, node.inputs[1], math.sqrt(2)) else None
    for source, factor in (node.inputs, node.inputs[::-1]):
        if is_scalar(graph, factor, math.sqrt(0.5)):
            return source
    return None
