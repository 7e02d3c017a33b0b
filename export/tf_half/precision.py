"""Reduced precision, baked into the graph between lowering and saving: the same step for both rungs.

docs/precision.md says what each precision is, what was tried, and what it costs and gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from isthmus.export.config import Precision
from isthmus.export.reduced import Evaluation
from isthmus.export.tf_half import bfloat16, integers, padding
from isthmus.export.tf_half.frozen import LogitsFn, freeze


def reduced(
    logits_fn: LogitsFn,
    *,
    precision: Precision,
    input_size: Sequence[int],
    calibration: Evaluation | None = None,
) -> LogitsFn:
    """The same model in another precision; fp32 is the model itself.

    Args:
        logits_fn: float32 [N, height, width, 3] -> float32 [N, C]; what `lowering.lower` returns.
        precision: of the products.
        input_size: [3, height, width].
        calibration: int8 takes the ranges of activations from these images.

    Returns:
        A function with the same interface.
    """
    if precision == "fp32":
        return logits_fn
    _, height, width = input_size
    frozen = freeze(logits_fn, height=height, width=width)
    if precision == "bf16":
        graph = bfloat16.rewritten(frozen.graph, output=frozen.output_node)
    else:
        assert calibration is not None, "the torch half writes it for int8"
        graph = integers.rewritten(
            frozen.graph, image=frozen.image, output=frozen.output_node, calibration=calibration
        )
    return dataclasses.replace(frozen, graph=graph)


def for_litert_int8(logits_fn: LogitsFn, *, input_size: Sequence[int], calibration: Evaluation) -> LogitsFn:
    """The fp32 model in a form that LiteRT's quantizer finds sensible ranges for; see padding.py."""
    _, height, width = input_size
    frozen = freeze(logits_fn, height=height, width=width)
    graph = padding.bounded(frozen.graph, image=frozen.image, calibration=calibration)
    return dataclasses.replace(frozen, graph=graph)
