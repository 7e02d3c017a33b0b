"""Products with a constant matrix become linear layers of any rank, with bias and activation.

So do convolutions of a single pixel, which squeeze-and-excitation is made of: a convolution kernel wakes all
threads for it, which costs several times the work itself.
"""

from __future__ import annotations

import numpy as np

from isthmus.export.tf_half.direct.graph import INTERNAL_DOMAIN, Graph, Node
from isthmus.export.tf_half.direct.matching import Uses, internal_node, other_input, replace


def make_linear(graph: Graph) -> None:
    """Gemm and MatMul with a constant right-hand side, and the vector added afterwards."""
    uses = Uses(graph)
    for node in list(graph.nodes):
        if node.domain:
            continue
        if node.op_type == "Gemm":
            _from_gemm(graph, node)
        elif node.op_type == "MatMul":
            _from_mat_mul(graph, uses, node)


def _from_gemm(graph: Graph, node: Node) -> None:
    weight = graph.constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2]
    bias = graph.constant(node.inputs[2]) if has_bias else None
    if weight is None or (has_bias and bias is None) or node.attrs.get("transA", 0):
        return
    if not np.issubdtype(weight.dtype, np.floating):
        return
    if node.attrs.get("transB", 0):
        weight = weight.T
    width = weight.shape[1]
    if bias is not None and bias.shape not in ((), (1,), (width,), (1, width), (1, 1)):
        return
    inputs = [
        node.inputs[0],
        graph.add_constant(node.inputs[1], weight * weight.dtype.type(node.attrs.get("alpha", 1))),
    ]
    if bias is not None:
        vector = np.broadcast_to(bias.reshape(-1), (width,)) * weight.dtype.type(node.attrs.get("beta", 1))
        inputs.append(graph.add_constant(node.inputs[2], vector))
    replace(graph, node, internal_node("Linear", node, inputs, node.outputs, graph.dims(node.outputs[0])))


def _from_mat_mul(graph: Graph, uses: Uses, node: Node) -> None:
    weight = graph.constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or len(graph.dims(node.inputs[0])) < 2:
        return
    if not np.issubdtype(weight.dtype, np.floating):
        return
    inputs = list(node.inputs)
    output = node.outputs[0]
    add = uses.only_reader(output, "Add")
    last = node
    if add is not None and add.domain == "":
        bias_name = other_input(add, output)
        bias = graph.constant(bias_name)
        if bias is not None and is_vector_on(bias, weight.shape[1], len(graph.dims(output))):
            inputs.append(graph.add_constant(bias_name, np.ascontiguousarray(bias.reshape(-1))))
            last = add
    replace(graph, last, internal_node("Linear", node, inputs, last.outputs, graph.dims(last.outputs[0])))


def is_vector_on(array: np.ndarray, width: int, rank: int) -> bool:
    """Whether a constant only varies along the last axis, of the given width."""
    return array.size == width and 0 < array.ndim <= rank and array.shape[-1] == width


def make_point_linear(graph: Graph) -> None:
    """Conv of a 1 × 1 image with a 1 × 1 kernel."""
    for node in list(graph.nodes):
        if node.op_type != "Conv" or node.domain not in ("", INTERNAL_DOMAIN):
            continue
        weight = graph.constant(node.inputs[1])
        if weight is None or any(graph.constant(name) is None for name in node.inputs[2:] if name):
            continue
        sizes = [*graph.dims(node.inputs[0])[2:], *graph.dims(node.outputs[0])[2:]]
        one_pixel = all(entry == 1 for size in sizes for entry in size) and set(weight.shape[2:]) == {1}
        if not one_pixel or node.attrs.get("group", 1) != 1:
            continue
        matrix = graph.add_constant(node.inputs[1], np.ascontiguousarray(weight.reshape(weight.shape[:2]).T))
        inputs = [node.inputs[0], matrix, *node.inputs[2:]]
        dims = graph.dims(node.outputs[0])
        replace(graph, node, internal_node("PointLinear", node, inputs, node.outputs, dims))


_FUSED = {
    "Linear": ("Gelu", "Relu"),
    "PointLinear": ("Gelu", "Relu", "Silu", "Sigmoid", "HardSwish", "HardSigmoid"),
}


def fuse_activations(graph: Graph) -> None:
    """Linear -> Gelu or Relu: applied inside, on the rank-2 product, where oneDNN fuses it."""
    uses = Uses(graph)
    for node in list(graph.nodes):
        if node.domain != INTERNAL_DOMAIN or node.op_type not in _FUSED:
            continue
        reader = uses.only_reader(node.outputs[0], *_FUSED[node.op_type])
        if reader is None:
            continue
        tanh = reader.attrs.get("approximate", "none") == "tanh"
        node.attrs["activation"] = "GeluTanh" if tanh else reader.op_type
        if reader.op_type == "HardSigmoid":
            node.attrs["parameters"] = [reader.attrs.get("alpha", 0.2), reader.attrs.get("beta", 0.5)]
        node.outputs = list(reader.outputs)
        graph.nodes.remove(reader)
