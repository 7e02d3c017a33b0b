"""Pillow's 8-bit resampling in TensorFlow ops, bit for bit, and only for the pixels that survive the crop.

Pillow resizes an 8-bit image in two passes, horizontal then vertical, and rounds to uint8 after each
(`src/libImaging/Resample.c`). For output position `o` of `out_length`, read from `in_length`:

    scale = in_length / out_length;  stretch = max(scale, 1);  support = filter.support * stretch
    center = (o + 0.5) * scale
    taps i in [max(int(center - support + 0.5), 0), min(int(center + support + 0.5), in_length))
    weight(i) = filter((i - center + 0.5) / stretch), in double, divided by the sum over the taps
    fixed(i) = int(weight * 2^22 ± 0.5), and value = clip((2^21 + sum of pixel * fixed) >> 22, 0, 255)

How that becomes fast and stays exact here: output positions are taken in blocks of 16, each block reads one
window of the input, and a block is a small matrix product. A product of 8 and 23 bits does not fit float32's
24, so each fixed weight is split as `high * 128 + low` (15 and 7 bits): both sums stay below 2^24 for
windows of up to 518 taps, where every float32 sum of integers is exact in any order, fused or not. Wider
ones (an image shrunk more than about 128 times with bicubic, 86 with lanczos) take the same road in float64,
which is exact without a split.

The one thing that a runtime could break: a CPU told to compute float32 products in bfloat16
(`ONEDNN_DEFAULT_FPMATH_MODE=BF16`), or an accelerator that uses TF32. The ops are therefore placed on the
CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

BLOCK = 16
PRECISION_BITS = 22
LOW_BITS = 7
# 518 taps × 127 × 255 < 2^24; a window may be wider than its taps, the rest of it has weight zero.
MAX_FLOAT32_TAPS = 518
# Bytes of source pixels that one strip of the horizontal pass works on: a few times that in float32 is the
# peak.
STRIP_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """One of Pillow's resampling filters."""

    name: str
    support: float
    """Half width, in input pixels, at scale 1."""
    weight: Callable[[tf.Tensor], tf.Tensor]
    """float64 distances in units of the (stretched) input pixel -> float64 weights, not normalised."""


def divided(x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """float64 x / by, as it is written: a plain division by a constant would be optimised into a product with the
    constant's reciprocal, one digit off, and an edge of a pixel then falls on the other side."""
    return tf.math.divide_no_nan(x, by)


def _box(x: tf.Tensor) -> tf.Tensor:
    return tf.cast((x > -0.5) & (x <= 0.5), tf.float64)


def _bilinear(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - tf.abs(x), 0.0)


def _sinc(x: tf.Tensor) -> tf.Tensor:
    angle = x * tf.constant(math.pi, tf.float64)
    return tf.where(x == 0.0, tf.ones_like(x), tf.math.divide_no_nan(tf.sin(angle), angle))


def _hamming(x: tf.Tensor) -> tf.Tensor:
    x = tf.abs(x)
    # Pillow writes these two constants in single precision.
    base, ripple = float(np.float32(0.54)), float(np.float32(0.46))
    window = base + ripple * tf.cos(x * tf.constant(math.pi, tf.float64))
    return tf.where(x == 0.0, tf.ones_like(x), tf.where(x >= 1.0, tf.zeros_like(x), _sinc(x) * window))


def _bicubic(x: tf.Tensor) -> tf.Tensor:
    x = tf.abs(x)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return tf.where(x < 1.0, near, tf.where(x < 2.0, far, tf.zeros_like(x)))


def _lanczos(x: tf.Tensor) -> tf.Tensor:
    inside = (x >= -3.0) & (x < 3.0)
    return tf.where(inside, _sinc(x) * _sinc(divided(x, tf.constant(3.0, tf.float64))), tf.zeros_like(x))


FILTERS: dict[str, Filter] = {
    f.name: f
    for f in (
        Filter(name="box", support=0.5, weight=_box),
        Filter(name="bilinear", support=1.0, weight=_bilinear),
        Filter(name="hamming", support=1.0, weight=_hamming),
        Filter(name="bicubic", support=2.0, weight=_bicubic),
        Filter(name="lanczos", support=3.0, weight=_lanczos),
    )
}
INTERPOLATIONS = ("nearest", *FILTERS)


class _Taps(NamedTuple):
    """Where each output position of one axis reads, and with what weights, in blocks of `BLOCK` positions."""

    # int64 scalar: first input position that any block reads.
    start: tf.Tensor
    # int64 scalar: one past the last.
    stop: tf.Tensor
    # int64 [num_blocks, window]: input positions of each block, clipped to [start, stop).
    window: tf.Tensor
    # float64 [num_blocks, BLOCK, window]: Pillow's 22-bit weights, integers; 0 outside a position's own taps.
    fixed: tf.Tensor
    # int64 scalar: the most taps that one position has.
    num_taps: tf.Tensor


def _taps(positions: tf.Tensor, *, in_length: tf.Tensor, out_length: tf.Tensor, filter_: Filter) -> _Taps:
    """`positions`: int64 [num_blocks * BLOCK] of [0, out_length), ascending. Lengths: int64 scalars."""
    scale = divided(tf.cast(in_length, tf.float64), tf.cast(out_length, tf.float64))
    stretch = tf.maximum(scale, 1.0)
    support = filter_.support * stretch
    center = (tf.cast(tf.reshape(positions, [-1, BLOCK]), tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(center - support + 0.5, tf.int64), 0)
    last = tf.minimum(tf.cast(center + support + 0.5, tf.int64), in_length)

    block_start = first[:, :1]
    width = tf.reduce_max(last[:, -1:] - block_start)
    window = block_start + tf.range(width)
    index = window[:, tf.newaxis, :]
    distance = (tf.cast(index, tf.float64) - center[..., tf.newaxis] + 0.5) * (1.0 / stretch)
    inside = (index >= first[..., tf.newaxis]) & (index < last[..., tf.newaxis])
    weight = tf.where(inside, filter_.weight(distance), tf.zeros_like(distance))
    total = tf.reduce_sum(weight, axis=-1, keepdims=True)
    weight = tf.where(total != 0.0, weight / total, weight) * float(1 << PRECISION_BITS)
    # C's (int) cast cuts towards zero.
    fixed = tf.where(weight < 0.0, tf.math.ceil(weight - 0.5), tf.floor(weight + 0.5))
    return _Taps(
        start=block_start[0, 0],
        stop=last[-1, -1],
        window=tf.minimum(window, last[-1, -1] - 1),
        fixed=fixed,
        num_taps=tf.reduce_max(last - first),
    )


def _float32_pass(source: tf.Tensor, window: tf.Tensor, fixed: tf.Tensor) -> tf.Tensor:
    """uint8 [length, lanes] -> float32 [num_blocks, BLOCK, lanes] before clipping; see the module's text."""
    pixels = tf.cast(tf.gather(source, window), tf.float32)
    high = tf.floor(fixed * 2.0**-LOW_BITS)
    low = fixed - high * 2.0**LOW_BITS
    # Powers of two: scaling changes no digit. high is in output levels, low in units of 2^-15 of a level.
    parts = tf.concat([high * 2.0 ** (LOW_BITS - PRECISION_BITS), low * 2.0**-LOW_BITS], axis=1)
    sums = tf.matmul(tf.cast(parts, tf.float32), pixels)
    high_sum, low_sum = sums[:, :BLOCK], sums[:, BLOCK:]
    return high_sum + (tf.floor(low_sum) * 2.0 ** (LOW_BITS - PRECISION_BITS) + 0.5)


def _float64_pass(source: tf.Tensor, window: tf.Tensor, fixed: tf.Tensor) -> tf.Tensor:
    """As `_float32_pass`, exact for any number of taps: 8 + 23 bits and up to 2^22 taps fit 53."""
    pixels = tf.cast(tf.gather(source, window), tf.float64)
    level = tf.floor(tf.matmul(fixed, pixels) * 2.0**-PRECISION_BITS + 0.5)
    return tf.cast(level, tf.float32)


def _resample_rows(source: tf.Tensor, taps: _Taps) -> tf.Tensor:
    """One pass along axis 0: uint8 [taps.stop - taps.start, lanes] -> uint8 [num_blocks * BLOCK, lanes]."""
    window = taps.window - taps.start
    level = tf.cond(
        taps.num_taps <= MAX_FLOAT32_TAPS,
        lambda: _float32_pass(source, window, taps.fixed),
        lambda: _float64_pass(source, window, taps.fixed),
    )
    # The cast cuts towards zero, which is the floor of what is not negative.
    clipped = tf.cast(tf.raw_ops.ClipByValue(t=level, clip_value_min=0.0, clip_value_max=255.0), tf.uint8)
    return tf.reshape(clipped, [-1, tf.shape(source)[1]])


def _horizontal(image: tf.Tensor, taps: _Taps) -> tf.Tensor:
    """uint8 [rows, columns, 3] -> uint8 [rows, num positions, 3], in strips of rows: little memory."""
    rows, columns = tf.shape(image)[0], tf.shape(image)[1]

    def strip(part: tf.Tensor) -> tf.Tensor:
        lanes = tf.shape(part)[0]
        by_column = tf.reshape(tf.transpose(part, [1, 0, 2]), [columns, lanes * 3])
        return tf.transpose(tf.reshape(_resample_rows(by_column, taps), [-1, lanes, 3]), [1, 0, 2])

    strip_rows = tf.maximum(STRIP_BYTES // (columns * 3), 8)

    def in_strips() -> tf.Tensor:
        num_strips = (rows + strip_rows - 1) // strip_rows
        parts = tf.TensorArray(tf.uint8, size=num_strips, infer_shape=False, element_shape=[None, None, 3])

        def step(i: tf.Tensor, parts: Any) -> tuple[tf.Tensor, Any]:
            part = image[i * strip_rows : (i + 1) * strip_rows]
            return i + 1, parts.write(i, strip(part))

        _, parts = tf.while_loop(
            lambda i, _: i < num_strips, step, (tf.constant(0), parts), parallel_iterations=2
        )
        return parts.concat()

    return tf.cond(rows <= strip_rows, lambda: strip(image), in_strips)


def _vertical(image: tf.Tensor, taps: _Taps) -> tf.Tensor:
    """uint8 [rows, columns, 3] -> uint8 [num positions, columns, 3]."""
    columns = tf.shape(image)[1]
    lanes = tf.reshape(image, [-1, columns * 3])
    return tf.reshape(_resample_rows(lanes, taps), [-1, columns, 3])


def _nearest_source(positions: tf.Tensor, *, in_length: tf.Tensor, out_length: tf.Tensor) -> tf.Tensor:
    """Pillow's nearest neighbour (`ImagingScaleAffine`): it adds the scale up, position by position, in
    double.

    The sums are made one after the other here too: a product would round differently at some sizes.
    """
    scale = divided(tf.cast(in_length, tf.float64), tf.cast(out_length, tf.float64))
    steps = tf.fill([tf.reduce_max(positions)], scale)
    reached = tf.cumsum(tf.concat([[scale * 0.5], steps], axis=0))
    return tf.minimum(tf.cast(tf.gather(reached, positions), tf.int64), in_length - 1)


def _padded(positions: tf.Tensor) -> tf.Tensor:
    """Repeat the last position until the number of them is a multiple of `BLOCK`."""
    missing = -positions.shape[0] % BLOCK
    return tf.concat([positions, tf.repeat(positions[-1:], missing)], axis=0) if missing else positions


def resize_at(
    image: tf.Tensor,
    *,
    resized: tuple[tf.Tensor, tf.Tensor],
    rows: tf.Tensor,
    columns: tf.Tensor,
    interpolation: str,
) -> tf.Tensor:
    """The pixels `rows` × `columns` of `image` resized to `resized` by Pillow; nothing else of it is
    computed.

    Args:
        image: uint8 [height, width, 3].
        resized: int64 scalars (height, width), the size of the whole resized image.
        rows, columns: int64 [n], positions in the resized image, ascending, of statically known number.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        uint8 [num rows, num columns, 3].
    """
    height, width = tf.unstack(tf.shape(image, out_type=tf.int64)[:2])
    if interpolation == "nearest":
        image = tf.gather(image, _nearest_source(rows, in_length=height, out_length=resized[0]))
        source = _nearest_source(columns, in_length=width, out_length=resized[1])
        return tf.gather(image, source, axis=1)
    filter_ = FILTERS[interpolation]
    down = _taps(_padded(rows), in_length=height, out_length=resized[0], filter_=filter_)
    across = _taps(_padded(columns), in_length=width, out_length=resized[1], filter_=filter_)
    image = image[down.start : down.stop, across.start : across.stop]
    # Pillow 12 (`Image.resize`) shrinks an image more than a hundred times taller than wide vertically
    # first: here that is the other order on the transposed image.
    tall = (height > width * 100) & (resized[0] < height)
    first, second, image = tf.cond(
        tall,
        lambda: (down, across, tf.transpose(image, [1, 0, 2])),
        lambda: (across, down, tf.identity(image)),
    )
    image = _vertical(_horizontal(image, first), second)
    image = tf.cond(tall, lambda: tf.transpose(image, [1, 0, 2]), lambda: tf.identity(image))
    return tf.ensure_shape(image[: rows.shape[0], : columns.shape[0]], [rows.shape[0], columns.shape[0], 3])
