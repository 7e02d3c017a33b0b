"""x * sigmoid(x), which exporters write as two operators, becomes one."""

from __future__ import annotations

import math
from typing import Any

from isthmus.export.tf_half.direct.graph import Graph
from isthmus.export.tf_half.direct.matching import Uses, internal_node, other_input, replace


def fuse_swish(graph: Graph) -> None:
    """Sigmoid and HardSigmoid (of a sixth and a half), multiplied with what they read."""
    uses = Uses(graph)
    for gate in [node for node in graph.nodes if node.op_type in ("Sigmoid", "HardSigmoid")]:
        product = None if gate.domain else uses.only_reader(gate.outputs[0], "Mul")
        if product is None or other_input(product, gate.outputs[0]) != gate.inputs[0]:
            continue
        if gate.op_type == "HardSigmoid" and not _is_hard_swish(gate.attrs):
            continue
        fused = "Silu" if gate.op_type == "Sigmoid" else "HardSwish"
        dims = graph.dims(product.outputs[0])
        replace(graph, product, internal_node(fused, product, gate.inputs[:1], product.outputs, dims))


def _is_hard_swish(attrs: dict[str, Any]) -> bool:
    return math.isclose(attrs.get("alpha", 0.2), 1 / 6, rel_tol=1e-6) and attrs.get("beta", 0.5) == 0.5
