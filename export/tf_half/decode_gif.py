"""The first frame of a GIF as Pillow shows it.

TensorFlow makes transparent pixels black, and its canvas is as large as the frame. Pillow converts a palette image
to RGB without its transparency: a transparent pixel has its palette colour, and so has the canvas around the frame
(of the transparent index, or of index 0). So TensorFlow is given an opaque frame, and the canvas is added after.
"""

from __future__ import annotations

import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes

_HEADER_BYTES = 13
_EXTENSION, _CONTROL, _IMAGE = 0x21, 0xF9, 0x2C


def _color_table_bytes(flags: tf.Tensor) -> tf.Tensor:
    present = tf.bitwise.bitwise_and(flags, 0x80) != 0
    return tf.where(present, 3 * tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7)), 0)


def _first_image(data: Bytes) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions of the first image descriptor and of the graphic control extension before it, or 0."""

    def is_extension(position: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (position < data.length) & (data.byte(position) == _EXTENSION)

    def skip(position: tf.Tensor, control: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        control = tf.where(data.byte(position + 1) == _CONTROL, position, control)
        (end,) = tf.while_loop(
            lambda at: (at < data.length) & (data.byte(at) != 0),
            lambda at: (at + 1 + data.byte(at),),
            (position + 2,),
        )
        return end + 1, control

    start = _HEADER_BYTES + _color_table_bytes(data.byte(10))
    return tf.while_loop(is_extension, skip, (start, tf.constant(0)))


def _frame(encoded: tf.Tensor, image: tf.Tensor, control: tf.Tensor) -> tf.Tensor:
    """uint8 [frame height, frame width, 3]: decoded as if it were opaque and at the canvas's corner."""

    def zeroed(contents: tf.Tensor, position: tf.Tensor, length: int) -> tf.Tensor:
        before = tf.strings.substr(contents, 0, position)
        after = tf.strings.substr(contents, position + length, -1)
        return tf.strings.join([before, tf.constant(bytes(length)), after])

    placed = zeroed(encoded, image + 1, 4)
    # Of all that the control block says, only the transparency matters to a first frame.
    contents = tf.cond(control > 0, lambda: zeroed(placed, control + 3, 1), lambda: placed)
    return tf.raw_ops.DecodeImage(contents=contents, channels=3, expand_animations=False)


def decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    """string scalar -> uint8 [height, width, 3], the first frame on its canvas."""
    data = Bytes(encoded)
    image, control = _first_image(data)
    frame = _frame(encoded, image, control)
    height, width = tf.shape(frame)[0], tf.shape(frame)[1]
    left, top = data.little_endian(image + 1), data.little_endian(image + 3)
    # A frame that reaches beyond the canvas makes it larger.
    below = tf.maximum(data.little_endian(8) - top - height, 0)
    right = tf.maximum(data.little_endian(6) - left - width, 0)

    own_table = tf.bitwise.bitwise_and(data.byte(image + 9), 0x80) != 0
    transparent = (control > 0) & (tf.bitwise.bitwise_and(data.byte(control + 3), 1) != 0)
    index = tf.where(transparent, data.byte(control + 6), 0)
    table = tf.where(own_table, image + 10, _HEADER_BYTES)
    bare = tf.cast(data.span(table + 3 * index, 3), tf.uint8)
    margins = [[top, below], [left, right], [0, 0]]
    covered = tf.pad(tf.ones([height, width, 1], tf.bool), margins)
    return tf.where(covered, tf.pad(frame, margins), bare)
