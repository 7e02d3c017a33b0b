"""Pooling, channels-last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.convolution import Pads, same_pads, spatial_sizes, window_pads
from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.reductions import reduce_value
from isthmus.export.tf_half.direct.registry import op
from isthmus.export.tf_half.direct.values import Value, channels_last


class _Window:
    """The geometry of one pooling operator; `overhang` is what ceil_mode adds beyond the padding."""

    def __init__(self, node: Node, x: Value) -> None:
        self.spatial = spatial_sizes(node, x)
        self.kernel = list(node.attrs["kernel_shape"])
        rank = len(self.kernel)
        self.strides = list(node.attrs.get("strides") or [1] * rank)
        self.dilations = list(node.attrs.get("dilations") or [1] * rank)
        self.pads = window_pads(node, self.spatial, self.kernel, self.strides)
        self.extents = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        ceil_mode = bool(node.attrs.get("ceil_mode", 0))
        self.sizes, self.overhang = [], []
        for size, (before, after), extent, stride in zip(
            self.spatial, self.pads, self.extents, self.strides, strict=True
        ):
            padded = size + before + after
            steps = (padded - extent) / stride
            out = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
            if ceil_mode and (out - 1) * stride >= size + before:
                out -= 1  # a window that starts in the padding after the image does not count
            self.sizes.append(out)
            self.overhang.append(max((out - 1) * stride + extent - padded, 0))

    @property
    def full_pads(self) -> Pads:
        """Padding including the overhang."""
        return [
            (before, after + more) for (before, after), more in zip(self.pads, self.overhang, strict=True)
        ]

    def padding(self) -> Any:
        """VALID or SAME when that means the same, else None."""
        if not np.any(self.full_pads):
            return "VALID"
        same = same_pads(self.spatial, self.kernel, self.strides, self.dilations)
        return "SAME" if same == self.full_pads else None

    def counts(self, include_pad: bool) -> np.ndarray:
        """How many elements each output averages over: [*sizes], float32."""
        total = np.ones((), np.float32)
        for axis, size in enumerate(self.spatial):
            before, after = self.pads[axis]
            low, high = (0, before + size + after) if include_pad else (before, before + size)
            taps = (
                np.arange(self.sizes[axis])[:, None] * self.strides[axis]
                + np.arange(self.kernel[axis])[None] * self.dilations[axis]
            )
            inside = ((taps >= low) & (taps < high)).sum(1)
            total = total[..., None] * inside.astype(np.float32)
        return total


def _pool(tensor: Any, window: _Window, kind: str, padding: str) -> Any:
    if len(window.kernel) == 2 and window.dilations == [1, 1]:
        # The raw operators, unlike tf.nn.pool, also take strides larger than the window.
        pool = tf.raw_ops.AvgPool if kind == "AVG" else tf.raw_ops.MaxPool
        named = "value" if kind == "AVG" else "input"
        return pool(
            **{named: tensor}, ksize=[1, *window.kernel, 1], strides=[1, *window.strides, 1], padding=padding
        )
    return tf.nn.pool(
        tensor, window.kernel, kind, strides=window.strides, padding=padding, dilations=window.dilations
    )


def _padded(tensor: Any, pads: Pads, fill: Any) -> Any:
    return tf.pad(tensor, [[0, 0], *[list(pair) for pair in pads], [0, 0]], constant_values=fill)


@op("MaxPool")
def max_pool(node: Node, x: Value) -> Value:
    """Maximum over windows; padding never wins."""
    if any(node.outputs[1:]):
        raise node.unsupported("its Indices output is read")
    window = _Window(node, x)
    order = channels_last(x.rank)
    tensor = x.stored(order)
    padding = window.padding()
    if padding is None:
        tensor = _padded(tensor, window.full_pads, tensor.dtype.min)
        padding = "VALID"
    return Value.of(_pool(tensor, window, "MAX", padding), order)


@op("AveragePool")
def average_pool(node: Node, x: Value) -> Value:
    """Mean over windows, the padding counted or not."""
    window = _Window(node, x)
    order = channels_last(x.rank)
    tensor = x.stored(order)
    include_pad = bool(node.attrs.get("count_include_pad", 0))
    counts = window.counts(include_pad)
    whole = np.float32(math.prod(window.kernel))
    padding = window.padding()
    if padding == "VALID":
        return Value.of(_pool(tensor, window, "AVG", "VALID"), order)
    if padding == "SAME" and not include_pad:
        return Value.of(_pool(tensor, window, "AVG", "SAME"), order)
    pooled = _pool(_padded(tensor, window.full_pads, 0), window, "AVG", "VALID")
    if (counts != whole).any():
        pooled = pooled * (whole / counts)[..., None]
    return Value.of(pooled, order)


@op("LpPool")
def lp_pool(node: Node, x: Value) -> Value:
    """(sum of |x|^p)^(1/p) over windows."""
    power = np.float32(node.attrs.get("p", 2))
    window = _Window(node, x)
    order = channels_last(x.rank)
    raised = _padded(tf.pow(tf.abs(x.stored(order)), power), window.full_pads, 0)
    sums = _pool(raised, window, "AVG", "VALID") * np.float32(math.prod(window.kernel))
    return Value.of(tf.pow(sums, 1 / power), order)


@op("GlobalAveragePool")
def global_average_pool(_: Node, x: Value) -> Value:
    """Mean over all spatial axes, kept with size one."""
    return reduce_value(x, list(range(2, x.rank)), True, tf.reduce_mean)


@op("GlobalMaxPool")
def global_max_pool(_: Node, x: Value) -> Value:
    """Maximum over all spatial axes, kept with size one."""
    return reduce_value(x, list(range(2, x.rank)), True, tf.reduce_max)
