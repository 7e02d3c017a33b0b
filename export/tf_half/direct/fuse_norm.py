"""GroupNorm, which exporters write as Reshape -> InstanceNormalization -> Reshape, becomes one operator."""

from __future__ import annotations

import numpy as np

from isthmus.export.tf_half.direct.graph import Graph
from isthmus.export.tf_half.direct.matching import Uses, internal_node, replace


def fuse_group_norm(graph: Graph) -> None:
    """[N, C, …] -> [N, G, -1] -> normalise -> [N, C, …], without leaving channels-last storage."""
    uses = Uses(graph)
    for node in [node for node in graph.nodes if node.op_type == "InstanceNormalization" and not node.domain]:
        before = uses.producer(node.inputs[0], "Reshape")
        after = uses.only_reader(node.outputs[0], "Reshape")
        scale, bias = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
        if before is None or after is None or scale is None or bias is None:
            continue
        source, target = graph.dims(before.inputs[0]), graph.dims(after.outputs[0])
        grouped = graph.dims(node.inputs[0])
        if source != target or len(grouped) != 3 or grouped[0] != source[0] or len(source) < 3:
            continue
        groups, channels = grouped[1][0], source[1][0]
        if channels % groups:
            continue
        per_channel = [
            graph.add_constant(name, np.repeat(array, channels // groups))
            for name, array in ((node.inputs[1], scale), (node.inputs[2], bias))
        ]
        fused = internal_node(
            "GroupNormalization",
            node,
            [before.inputs[0], *per_channel],
            after.outputs,
            target,
            num_groups=groups,
            epsilon=node.attrs.get("epsilon", 1e-5),
        )
        replace(graph, after, fused)
