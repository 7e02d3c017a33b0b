"""Reshapes, broadcasts and identities that nobody needs."""

from __future__ import annotations

from isthmus.export.tf_half.direct.graph import INTERNAL_DOMAIN, Dims, Graph, Node
from isthmus.export.tf_half.direct.matching import Uses, rename

_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Where", "Equal", "Greater", "Less")
_RESHAPES = ("Reshape", "Flatten")


def drop_identities(graph: Graph) -> None:
    """Identity and Dropout."""
    for node in [node for node in graph.nodes if node.op_type in ("Identity", "Dropout") and not node.domain]:
        if not any(node.outputs[1:]):
            graph.nodes.remove(node)
            rename(graph, node.outputs[0], node.inputs[0])


def drop_expands(graph: Graph) -> None:
    """Expand before operators that broadcast by themselves to the same shape."""
    uses = Uses(graph)
    for node in [node for node in graph.nodes if node.op_type == "Expand" and not node.domain]:
        small, large = node.inputs[0], node.outputs[0]
        readers = uses.readers(large)
        if large in graph.outputs or not readers:
            continue
        if all(_broadcasts_anyway(graph, reader, large, small) for reader in readers):
            graph.nodes.remove(node)
            rename(graph, large, small)


def _broadcasts_anyway(graph: Graph, reader: Node, large: str, small: str) -> bool:
    if reader.op_type not in _BROADCASTING or reader.domain or reader.inputs.count(large) != 1:
        return False
    shapes = [graph.dims(small if name == large else name) for name in reader.inputs]
    return _broadcast(shapes) == graph.dims(reader.outputs[0])


def _broadcast(shapes: list[Dims]) -> Dims:
    rank = max(len(shape) for shape in shapes)
    result = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis]
        result.append(tuple(max(entries) for entries in zip(*sizes, strict=True)))
    return tuple(result)


def merge_reshapes(graph: Graph) -> None:
    """Linear layers see through reshapes of their leading axes; of reshapes in a row only the last stays."""
    _widen_linears(graph)
    producers = graph.producers()
    for node in list(graph.nodes):
        if node.op_type not in _RESHAPES or node.domain:
            continue
        source = producers.get(node.inputs[0])
        while source is not None and source.op_type in _RESHAPES and not source.domain:
            node.inputs[0] = source.inputs[0]
            source = producers.get(node.inputs[0])
        if graph.dims(node.inputs[0]) == graph.dims(node.outputs[0]) and node.outputs[0] not in graph.outputs:
            graph.nodes.remove(node)
            rename(graph, node.outputs[0], node.inputs[0])


def _widen_linears(graph: Graph) -> None:
    """Reshape [..., K] -> [-1, K] -> Linear becomes Linear on [..., K] -> Reshape."""
    producers = graph.producers()
    for node in list(graph.nodes):
        if node.domain != INTERNAL_DOMAIN or node.op_type != "Linear":
            continue
        before = producers.get(node.inputs[0])
        if before is None or before.op_type not in _RESHAPES or before.domain:
            continue
        source = graph.dims(before.inputs[0])
        if len(source) < 2 or source[-1] != graph.dims(node.inputs[0])[-1]:
            continue
        flat, flat_dims = node.outputs[0], graph.dims(node.outputs[0])
        wide = graph.fresh_name(flat)
        wide_dims = (*source[:-1], flat_dims[-1])
        graph.facts[wide] = type(graph.facts[flat])(dims=wide_dims)
        node.inputs[0], node.outputs, node.out_dims = before.inputs[0], [wide], (wide_dims,)
        reshape = Node(
            op_type="Reshape",
            inputs=[wide],
            outputs=[flat],
            name=before.name,
            opset=before.opset,
            out_dims=(flat_dims,),
        )
        graph.nodes.insert(graph.nodes.index(node) + 1, reshape)
        producers[flat], producers[wide] = reshape, node
