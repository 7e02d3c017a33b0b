"""What is multiplied or added per channel after a convolution or a linear layer goes into its weights."""

from __future__ import annotations

import numpy as np

from isthmus.export.tf_half.direct.graph import INTERNAL_DOMAIN, Graph, Node
from isthmus.export.tf_half.direct.matching import Uses, internal_node, replace

_SCALINGS = ("Mul", "Div", "Add", "Sub", "BatchNormalization")


def fold_into_weights(graph: Graph) -> None:
    """Conv and Linear followed by Mul, Div, Add, Sub or BatchNormalization with constants."""
    for node in [node for node in graph.nodes if _is_weighted(graph, node)]:
        _fold_one(graph, node)


def _is_weighted(graph: Graph, node: Node) -> bool:
    weighted = (node.op_type == "Conv" and node.domain in ("", INTERNAL_DOMAIN)) or (
        node.op_type == "Linear" and node.domain == INTERNAL_DOMAIN
    )
    return weighted and all(graph.constant(name) is not None for name in node.inputs[1:] if name)


def _fold_one(graph: Graph, node: Node) -> None:
    """Swallow readers one after the other, as long as each is the only one."""
    uses = Uses(graph)
    weight = graph.constant(node.inputs[1])
    assert weight is not None
    linear = node.op_type == "Linear"
    width = weight.shape[1] if linear else weight.shape[0]
    bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    scale, shift = np.ones(width), np.zeros(width)
    if bias is not None:
        shift += bias
    swallowed: list[Node] = []
    reshapes: list[Node] = []
    output = node.outputs[0]
    while (reader := uses.only_reader(output)) is not None and not reader.domain:
        if linear and reader.op_type in ("Reshape", "Flatten") and _keeps_features(graph, reader):
            reshapes.append(reader)
            output = reader.outputs[0]
            continue
        rank = len(graph.dims(output))
        axis = rank - 1 if linear else 1
        found = _channel_affine(graph, reader, output, width, axis) if reader.op_type in _SCALINGS else None
        if found is None:
            break
        factor, offset = found
        scale, shift = scale * factor, shift * factor + offset
        swallowed.append(reader)
        output = reader.outputs[0]
    if not swallowed:
        return
    _rewrite(graph, node, weight, scale, shift)
    for reader in swallowed:
        graph.nodes.remove(reader)
        source = reader.inputs[0] if graph.constant(reader.inputs[0]) is None else reader.inputs[1]
        for other in graph.nodes:
            other.inputs = [source if name == reader.outputs[0] else name for name in other.inputs]
        graph.outputs = [source if name == reader.outputs[0] else name for name in graph.outputs]


def _keeps_features(graph: Graph, reshape: Node) -> bool:
    return graph.dims(reshape.inputs[0])[-1] == graph.dims(reshape.outputs[0])[-1]


def _rewrite(graph: Graph, node: Node, weight: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    spread = scale if node.op_type == "Linear" else scale.reshape(-1, *(1,) * (weight.ndim - 1))
    folded = graph.add_constant(node.inputs[1], (weight * spread).astype(weight.dtype))
    offsets = graph.add_constant(node.inputs[1], shift.astype(weight.dtype))
    new = internal_node(
        node.op_type,
        node,
        [node.inputs[0], folded, offsets],
        node.outputs,
        graph.dims(node.outputs[0]),
        **node.attrs,
    )
    replace(graph, node, new)


def _channel_affine(
    graph: Graph, node: Node, source: str, width: int, axis: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, offset) per channel, when that is all a node does to its input."""
    if node.op_type == "BatchNormalization":
        return _batch_norm_affine(graph, node) if axis == 1 and node.inputs[0] == source else None
    position = node.inputs.index(source)
    array = graph.constant(node.inputs[1 - position])
    if array is None or graph.dims(node.outputs[0]) != graph.dims(source):
        return None
    vector = _per_channel(array, width, axis, len(graph.dims(source)))
    if vector is None or (node.op_type == "Div" and position == 1):
        return None
    zero, one = np.zeros(width), np.ones(width)
    sign = one if position == 0 else -one
    return {
        "Mul": lambda: (vector, zero),
        "Div": lambda: (1 / vector, zero),
        "Add": lambda: (one, vector),
        "Sub": lambda: (sign, -sign * vector),
    }[node.op_type]()


def _batch_norm_affine(graph: Graph, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    arrays = [graph.constant(name) for name in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return factor, beta - mean * factor


def _per_channel(array: np.ndarray, width: int, axis: int, rank: int) -> np.ndarray | None:
    """The array as a vector along `axis`, when it varies along no other."""
    if array.ndim > rank or not np.issubdtype(array.dtype, np.floating):
        return None
    shape = [1] * (rank - array.ndim) + list(array.shape)
    if any(size != 1 for position, size in enumerate(shape) if position != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (width,)).astype(np.float64)
