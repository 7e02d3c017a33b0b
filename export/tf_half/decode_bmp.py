"""Uncompressed BMP as Pillow shows it; TensorFlow's own decoder reads palettes as grayscale and few of the rest.

1, 4 and 8 bits with a palette; 16 bits as 5-5-5 or, with masks, 5-6-5; 24 bits; 32 bits with a byte for each colour,
alpha ignored. Rows from the bottom up, or from the top down where the height is negative. Run-length encoding and
other masks are refused: the image counts as one that does not decode. Where the header places the pixels on the
palette, or nowhere, they are behind it.
"""

from __future__ import annotations

import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes

_OS2_HEADER_BYTES = 12
_HEADER_BYTES = (_OS2_HEADER_BYTES, 40, 52, 56, 64, 108, 124)
_UNCOMPRESSED, _MASKED = 0, 3
_MAX_PIXELS = 1 << 28
# Of four bytes each: place of the pixels, size of the header, width, height, compression, colours, three masks. Of two:
# bits, and width, height and bits as OS/2 has them.
_LONG = [[10], [14], [18], [22], [30], [46], [54], [58], [62]]
_SHORT = [[28], [18], [20], [24]]


def _ensure(condition: tf.Tensor, message: str) -> tf.Operation:
    return tf.debugging.Assert(condition, [message])


def _palette(data: Bytes, first: tf.Tensor, num: tf.Tensor, entry: tf.Tensor) -> tf.Tensor:
    """uint8 [256, 3], red first. Entries that the file has not are black, as in Pillow."""
    index = tf.range(256)
    colors = data.at(first + entry * index[:, tf.newaxis] + [2, 1, 0])
    return tf.cast(tf.where((index < num)[:, tf.newaxis], colors, 0), tf.uint8)


def _start(said: tf.Tensor, behind: tf.Tensor, palette: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
    """Where the pixels are; files exist whose header says the byte `behind` itself although a palette is there."""
    return tf.where(said == 0, behind + palette + masks, tf.where(said == behind, behind + palette, said))


def _indexed(rows: tf.Tensor, bits: tf.Tensor, width: tf.Tensor, palette: tf.Tensor) -> tf.Tensor:
    """int32 [height, row bytes] -> uint8 [height, width, 3]."""
    per_byte = 8 // bits
    x = tf.range(width)
    packed = tf.gather(rows, x // per_byte, axis=1)
    shift = 8 - bits - bits * (x % per_byte)
    mask = tf.bitwise.left_shift(1, bits) - 1
    return tf.gather(palette, tf.bitwise.bitwise_and(tf.bitwise.right_shift(packed, shift), mask))


def _sixteen_bit(rows: tf.Tensor, width: tf.Tensor, green_bits: tf.Tensor) -> tf.Tensor:
    low, high = rows[:, 0 : 2 * width : 2], rows[:, 1 : 2 * width : 2]
    value = high * 256 + low
    most_green = tf.bitwise.left_shift(1, green_bits) - 1

    def scaled(shift: tf.Tensor | int, most: tf.Tensor | int) -> tf.Tensor:
        return tf.bitwise.bitwise_and(tf.bitwise.right_shift(value, shift), most) * 255 // most

    return tf.stack([scaled(5 + green_bits, 31), scaled(5, most_green), scaled(0, 31)], axis=-1)


def _byte_of(masks: tf.Tensor) -> tf.Tensor:
    """Which byte of a pixel each mask takes: int32, -1 where it takes none or several."""
    bytes_of = tf.constant([0xFF, 0xFF00, 0xFF0000, -0x1000000])
    equal = masks[:, tf.newaxis] == bytes_of
    return tf.where(tf.reduce_any(equal, axis=1), tf.argmax(equal, axis=1, output_type=tf.int32), -1)


def _true_color(rows: tf.Tensor, width: tf.Tensor, num_bytes: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    pixels = tf.reshape(rows[:, : width * num_bytes], [-1, width, num_bytes])
    return tf.gather(pixels, order, axis=2)


def decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """string scalar -> uint8 [height, width, 3]."""
    data = Bytes(encoded)
    long = data.little_endian(tf.constant(_LONG), 4)
    said, header, width, signed_height, compression, used = tf.unstack(long[:6])
    masks = long[6:]
    bits, os2_width, os2_height, os2_bits = tf.unstack(data.little_endian(tf.constant(_SHORT)))
    os2 = header == _OS2_HEADER_BYTES
    width, signed_height, bits, compression, used, entry = tf.unstack(
        tf.where(
            os2,
            [os2_width, os2_height, os2_bits, _UNCOMPRESSED, 0, 3],
            [width, signed_height, bits, compression, used, 4],
        )
    )
    height = tf.abs(signed_height)
    num = tf.where(used > 0, used, tf.bitwise.left_shift(1, bits))
    masked = compression == _MASKED
    is_565 = masked & (bits == 16) & tf.reduce_all(masks == [0xF800, 0x7E0, 0x1F])
    is_555 = (bits == 16) & (~masked | tf.reduce_all(masks == [0x7C00, 0x3E0, 0x1F]))
    # Blue first; masks of zeros say nothing.
    order = tf.where(masked & (bits == 32) & tf.reduce_any(masks != 0), _byte_of(masks), [2, 1, 0])
    is_32 = (bits == 32) & tf.reduce_all(order >= 0)
    plain = ~masked & ((bits == 1) | (bits == 4) | (bits == 8) | (bits == 24))
    behind = 14 + header
    palette = tf.where(bits <= 8, num * entry, 0)
    start = _start(said, behind, palette, tf.where(masked & (header == 40), 12, 0))
    checks = [
        _ensure(tf.reduce_any(header == tf.constant(_HEADER_BYTES)), "BMP with an unknown header"),
        _ensure(
            (width > 0) & (height > 0) & (height <= _MAX_PIXELS // tf.maximum(width, 1)), "BMP without pixels"
        ),
        _ensure((compression == _UNCOMPRESSED) | masked, "compressed BMP"),
        _ensure(plain | is_565 | is_555 | is_32, "BMP of an unusual pixel layout"),
    ]
    with tf.control_dependencies(checks):
        width, height = tf.identity(width), tf.identity(height)
    stride = (bits * width + 31) // 32 * 4
    rows = tf.reshape(data.slice(start, height * stride), [height, stride])
    rows = tf.cond(signed_height > 0, lambda: tf.reverse(rows, [0]), lambda: rows)
    branch = tf.where(bits <= 8, 0, tf.where(bits == 16, 1, 2))
    image = tf.switch_case(
        branch,
        [
            lambda: _indexed(rows, bits, width, _palette(data, behind, num, entry)),
            lambda: tf.cast(_sixteen_bit(rows, width, tf.where(is_565, 6, 5)), tf.uint8),
            lambda: tf.cast(_true_color(rows, width, bits // 8, order), tf.uint8),
        ],
    )
    return tf.ensure_shape(image, [None, None, 3])
