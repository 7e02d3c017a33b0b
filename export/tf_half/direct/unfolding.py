"""Col2Im: overlapping patches are added back into an image (timm's volo)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node, static_dims
from isthmus.export.tf_half.direct.layout import reshape
from isthmus.export.tf_half.direct.registry import constant_ints, op
from isthmus.export.tf_half.direct.values import Value, channels_last


@op("Col2Im", since=18)
def col2im(node: Node, x: Value, image_shape: Value, block_shape: Value) -> Value:
    """x [N, C * taps, positions] -> [N, C, H, W]: each tap is a strided image, and their padded sum is the answer."""
    image = constant_ints(node, image_shape, "image_shape")
    block = constant_ints(node, block_shape, "block_shape")
    if len(image) != 2:
        raise node.unsupported(f"{len(image)} spatial axes; 2")
    strides = node.attrs.get("strides") or [1, 1]
    dilations = node.attrs.get("dilations") or [1, 1]
    pads = node.attrs.get("pads") or [0] * 4
    padded = [image[axis] + pads[axis] + pads[axis + 2] for axis in range(2)]
    counts = [
        (padded[axis] - dilations[axis] * (block[axis] - 1) - 1) // strides[axis] + 1 for axis in range(2)
    ]
    batch, channels, _ = x.known_dims()
    taps = int(np.prod(block))
    split = static_dims([channels[0] // taps, taps, *counts], len(batch))
    patches = reshape(x, (batch, *split)).stored((0, 2, 3, 4, 1))
    total = None
    for tap in range(taps):
        offsets = [place * step for place, step in zip(divmod(tap, block[1]), dilations, strict=True)]
        placed = _placed(patches[:, tap], strides, offsets, padded)
        total = placed if total is None else total + placed
    assert total is not None
    cropped = total[:, pads[0] : pads[0] + image[0], pads[1] : pads[1] + image[1]]
    return Value.of(cropped, channels_last(4))


def _placed(patch: tf.Tensor, strides: list[int], offsets: list[int], padded: list[int]) -> tf.Tensor:
    """[N, h, w, C] with its pixels `strides` apart, starting at `offsets`, in zeros of size `padded`."""
    spread = patch
    for axis in range(2):
        if strides[axis] > 1:
            spread = tf.expand_dims(spread, axis + 2)
            gaps = np.zeros((5, 2), np.int32)
            gaps[axis + 2, 1] = strides[axis] - 1
            sizes = [patch.shape[1], patch.shape[2]]
            sizes[: axis + 1] = [size * stride for size, stride in zip(sizes, strides, strict=True)][
                : axis + 1
            ]
            spread = tf.reshape(tf.pad(spread, gaps), [-1, *sizes, patch.shape[3]])
    wanted = [min(spread.shape[axis + 1], padded[axis] - offsets[axis]) for axis in range(2)]
    spread = spread[:, : wanted[0], : wanted[1]]
    margins = [[offsets[axis], padded[axis] - offsets[axis] - wanted[axis]] for axis in range(2)]
    return tf.pad(spread, [[0, 0], *margins, [0, 0]])
