"""Convolutions. TensorFlow computes them channels-last on a CPU; the order is carried along by the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.registry import choice, constant_input, internal, op
from isthmus.export.tf_half.direct.values import Value, channels_last, current_run, graph_constant

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
Pads = list[tuple[int, int]]


def window_pads(node: Node, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Pads:
    """(before, after) zero padding of each spatial axis, auto_pad resolved."""
    rank = len(kernel)
    dilations = node.attrs.get("dilations") or [1] * rank
    auto_pad = choice(node, "auto_pad", AUTO_PADS, "NOTSET")
    if auto_pad == "NOTSET":
        pads = node.attrs.get("pads") or [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    result = []
    for size, extent, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return result


def same_pads(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """What TensorFlow's padding="SAME" would add."""
    result = []
    for size, extent, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        result.append((total // 2, total - total // 2))
    return result


def spatial_sizes(node: Node, x: Value) -> list[int]:
    """Static spatial sizes of an N, C, … value."""
    sizes = x.shape[2:]
    if None in sizes:
        raise node.unsupported("its input has a spatial size that depends on the batch")
    return [size for size in sizes if size is not None]


@op("Conv")
@internal("Conv")
def conv(node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """Convolution over one, two or three spatial axes, with groups, strides, dilations and any zero padding.

    The internal form carries an `activation` that is applied before the result leaves the operator.
    """
    kernel = constant_input(node, w, "weight")
    bias = None if b is None else constant_input(node, b, "bias")
    strides = node.attrs.get("strides") or [1] * (x.rank - 2)
    dilations = node.attrs.get("dilations") or [1] * (x.rank - 2)
    pads = window_pads(node, spatial_sizes(node, x), kernel.shape[2:], strides)
    groups = node.attrs.get("group", 1)
    order = channels_last(x.rank)
    tensor = x.stored(order)
    if x.rank == 3:  # a line is an image of height one
        tensor, kernel = tensor[:, None], kernel[:, :, None]
        strides, dilations, pads = [1, *strides], [1, *dilations], [(0, 0), *pads]
    geometry: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": pads, "groups": groups}
    if kernel.ndim == 4:
        result = _conv2d(tensor, kernel, **geometry)
    elif kernel.ndim == 5:
        result = _conv3d(tensor, kernel, **geometry)
    else:
        raise node.unsupported(f"{kernel.ndim - 2} spatial axes; up to 3")
    if bias is not None and bias.any():
        result = tf.nn.bias_add(result, graph_constant(bias))
    if x.rank == 3:
        result = tf.squeeze(result, [1])
    return Value.of(result, order)


def _conv2d(
    x: Any, w: np.ndarray, *, strides: list[int], dilations: list[int], pads: Pads, groups: int
) -> Any:
    height, width, channels = x.shape[1:]
    padding: Any = [[0, 0], *[list(pair) for pair in pads], [0, 0]]
    if not np.any(pads):
        padding = "VALID"
    elif pads == same_pads((height, width), w.shape[2:], strides, dilations):
        padding = "SAME"
    if groups == channels and groups > 1:
        return _depthwise(x, w, strides, dilations, padding)
    kernel = graph_constant(np.ascontiguousarray(w.transpose(2, 3, 1, 0)))
    result = tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations)
    # Grappler fuses a convolution with the bias after it, and TensorFlow's own fused kernel, which runs wherever
    # oneDNN does not (x86 without AVX512-VNNI), refuses groups. It does not see through this check of the shape.
    return result if groups == 1 else tf.ensure_shape(result, result.shape)


def _depthwise(x: Any, w: np.ndarray, strides: list[int], dilations: list[int], padding: Any) -> Any:
    channels = x.shape[-1]
    multiplier = w.shape[0] // channels
    kernel = w.reshape(channels, multiplier, *w.shape[2:]).transpose(2, 3, 0, 1)
    dilated = tuple(dilations) != (1, 1)
    thinned = strides[0] != strides[1] or (
        dilated and max(strides) > 1
    )  # forms that TensorFlow's kernel lacks
    if dilated:
        kernel = _dilate(kernel, dilations)
    if thinned and padding == "SAME":
        pads = same_pads(x.shape[1:3], kernel.shape[:2], strides, (1, 1))
        padding = [[0, 0], *[list(pair) for pair in pads], [0, 0]]
    if not isinstance(padding, str) and not thinned:
        kernel, padding = _widened(kernel, x.shape[1:3], strides, padding)
    if not isinstance(padding, str):
        # Not handed to the operator: on an explicit depthwise padding grappler's shape inference aborts the
        # whole process.
        x, padding = tf.pad(x, padding), "VALID"
    steps = [1, 1, 1, 1] if thinned else [1, *strides, 1]
    result = tf.nn.depthwise_conv2d(x, graph_constant(np.ascontiguousarray(kernel)), steps, padding)
    return result[:, :: strides[0], :: strides[1]] if thinned else result


def _widened(kernel: np.ndarray, spatial: Sequence[int], strides: list[int], padding: Any) -> tuple[Any, Any]:
    """A [kh, kw, …] kernel with zeros around it for which "SAME" pads as is wanted, and that; else both as given.

    A stride of 2 over an even size, as torch pads it, wants one pixel more before than "SAME" gives. One more row
    and column of zeros in the kernel cost less than a padded copy of the image.
    """
    around = []
    for size, extent, stride, (before, after) in zip(
        spatial, kernel.shape, strides, padding[1:3], strict=False
    ):
        steps = (size + before + after - extent) // stride + 1
        for lead, trail in ((0, 0), (0, 1), (1, 0)):
            ((added, _),) = same_pads([size], [extent + lead + trail], [stride], [1])
            if steps == -(-size // stride) and added == before + lead:
                around.append((lead, trail))
                break
        else:
            return kernel, padding
    return np.pad(kernel, [*around, (0, 0), (0, 0)]), "SAME"


def _dilate(kernel: np.ndarray, dilations: Sequence[int]) -> np.ndarray:
    """Zeros between the taps of a [kh, kw, …] kernel."""
    shape = [(extent - 1) * step + 1 for extent, step in zip(kernel.shape, dilations, strict=False)]
    spread = np.zeros((*shape, *kernel.shape[len(dilations) :]), kernel.dtype)
    spread[tuple(slice(None, None, step) for step in dilations)] = kernel
    return spread


def _conv3d(
    x: Any, w: np.ndarray, *, strides: list[int], dilations: list[int], pads: Pads, groups: int
) -> Any:
    if np.any(pads):
        x = tf.pad(x, [[0, 0], *[list(pair) for pair in pads], [0, 0]])
    kernel = _dilate(w.transpose(2, 3, 4, 1, 0), dilations)
    results = [
        tf.nn.conv3d(part, graph_constant(np.ascontiguousarray(taps)), [1, *strides, 1], "VALID")
        for part, taps in zip(tf.split(x, groups, axis=-1), np.split(kernel, groups, axis=-1), strict=True)
    ]
    return results[0] if groups == 1 else tf.concat(results, -1)


@op("ConvTranspose")
def conv_transpose(node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """Transposed convolution over one or two spatial axes: the full result, then cropped by the padding."""
    kernel = constant_input(node, w, "weight")
    rank = x.rank - 2
    if rank not in (1, 2):
        raise node.unsupported(f"{rank} spatial axes; 1 or 2")
    strides = list(node.attrs.get("strides") or [1] * rank)
    dilations = list(node.attrs.get("dilations") or [1] * rank)
    spatial = spatial_sizes(node, x)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    pads, sizes = _transposed_pads(node, spatial, extents, strides)
    order = channels_last(x.rank)
    tensor = x.stored(order)
    if rank == 1:
        tensor, kernel = tensor[:, None], kernel[:, :, None]
        strides, dilations, extents = [1, *strides], [1, *dilations], [1, *extents]
        pads, sizes, spatial = [(0, 0), *pads], [1, *sizes], [1, *spatial]
    result = _full_transpose(
        tensor, _dilate(kernel.transpose(2, 3, 0, 1), dilations), strides, node.attrs.get("group", 1)
    )
    full = [
        (size - 1) * stride + extent for size, stride, extent in zip(spatial, strides, extents, strict=True)
    ]
    missing = [max(pad[0] + size - whole, 0) for pad, size, whole in zip(pads, sizes, full, strict=True)]
    if any(missing):
        result = tf.pad(result, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
    result = result[:, pads[0][0] : pads[0][0] + sizes[0], pads[1][0] : pads[1][0] + sizes[1]]
    if b is not None:
        result = tf.nn.bias_add(result, graph_constant(constant_input(node, b, "bias")))
    return Value.of(tf.squeeze(result, [1]) if rank == 1 else result, order)


def _transposed_pads(
    node: Node, spatial: list[int], extents: list[int], strides: list[int]
) -> tuple[Pads, list[int]]:
    """How much to crop on each side, and the resulting sizes."""
    rank = len(spatial)
    extra = node.attrs.get("output_padding") or [0] * rank
    auto_pad = choice(node, "auto_pad", AUTO_PADS, "NOTSET")
    wanted = node.attrs.get("output_shape")
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(spatial, strides, strict=True)]
    pads: Pads = []
    if wanted is None:
        given = node.attrs.get("pads") or [0] * (2 * rank)
        pads = list(zip(given[:rank], given[rank:], strict=True)) if auto_pad == "NOTSET" else [(0, 0)] * rank
        sizes = [
            stride * (size - 1) + more + extent - pad[0] - pad[1]
            for size, stride, more, extent, pad in zip(spatial, strides, extra, extents, pads, strict=True)
        ]
        return pads, sizes
    for size, stride, more, extent, target in zip(
        spatial, strides, extra, extents, wanted[-rank:], strict=True
    ):
        total = max(stride * (size - 1) + more + extent - target, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return pads, list(wanted[-rank:])


def _full_transpose(x: Any, kernel: np.ndarray, strides: list[int], groups: int) -> Any:
    """kernel [kh, kw, in, out / groups]; nothing cropped."""
    parts = []
    sizes = [(x.shape[axis + 1] - 1) * strides[axis] + kernel.shape[axis] for axis in range(2)]
    batch = x.shape[0] if x.shape[0] is not None else current_run.get().batch
    batch = tf.shape(x)[0] if x.shape[0] is None else batch
    for part, taps in zip(tf.split(x, groups, axis=-1), np.split(kernel, groups, axis=2), strict=True):
        flipped = graph_constant(np.ascontiguousarray(taps.transpose(0, 1, 3, 2)))
        shape = tf.stack([batch, *sizes, taps.shape[3]])
        parts.append(tf.nn.conv2d_transpose(part, flipped, shape, strides, "VALID"))
    return parts[0] if groups == 1 else tf.concat(parts, -1)
