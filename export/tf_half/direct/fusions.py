"""Rewrites of the ONNX graph before it is emitted: fewer, larger operators that TensorFlow runs well.

Every rewrite keeps the function the graph computes. Order matters: activations are recognised first, then
matrix products become linear layers, then what is multiplied or added per channel goes into their weights.
"""

from __future__ import annotations

from isthmus.export.tf_half.direct.fuse_gelu import fuse_gelu
from isthmus.export.tf_half.direct.fuse_linear import (
    fuse_activations,
    make_linear,
    make_point_linear,
)
from isthmus.export.tf_half.direct.fuse_norm import fuse_group_norm
from isthmus.export.tf_half.direct.fuse_shapes import drop_expands, drop_identities, merge_reshapes
from isthmus.export.tf_half.direct.fuse_swish import fuse_swish
from isthmus.export.tf_half.direct.fuse_weights import fold_into_weights
from isthmus.export.tf_half.direct.graph import Graph

PASSES = (
    drop_identities,
    drop_expands,
    fuse_gelu,
    fuse_swish,
    fuse_group_norm,
    make_linear,
    merge_reshapes,
    fold_into_weights,
    merge_reshapes,
    make_point_linear,
    fuse_activations,
)


def fuse(graph: Graph) -> None:
    """Apply all rewrites in place."""
    for rewrite in PASSES:
        rewrite(graph)
        graph.prune()
