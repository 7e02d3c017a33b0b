"""WebP as Pillow shows it: the first frame, without its alpha.

TensorFlow decodes a still image with the number of channels that it has, and corrupts its memory on some animated
ones. So the coded picture (the first `VP8 ` or `VP8L` chunk, in the first frame of an animation) is taken out and
wrapped as the simplest WebP file there is; alpha that is stored beside it is not needed for RGB.
"""

from __future__ import annotations

import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes


def _code(name: bytes) -> int:
    return int.from_bytes(name, "little")


_LOSSY, _LOSSLESS, _FRAME = (_code(name) for name in (b"VP8 ", b"VP8L", b"ANMF"))
_FIRST_CHUNK = 12
_CHUNK_HEADER_BYTES, _FRAME_HEADER_BYTES = 8, 16


def _picture(data: Bytes) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions of the first coded picture's chunk, and of the frame chunk around it (0: none)."""

    def searching(position: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        name = data.little_endian(position, 4)
        return (position < data.length) & (name != _LOSSY) & (name != _LOSSLESS)

    def step(position: tf.Tensor, frame: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        enters = data.little_endian(position, 4) == _FRAME
        size = tf.maximum(data.little_endian(position + 4, 4), 0)
        # Chunks are padded to an even length; the sum may not wrap around.
        size = tf.minimum(size + size % 2, data.length)
        inside = tf.where(enters, _FRAME_HEADER_BYTES, size)
        return position + _CHUNK_HEADER_BYTES + inside, tf.where(enters, position, frame)

    return tf.while_loop(searching, step, (tf.constant(_FIRST_CHUNK), tf.constant(0)))


def _little_endian_string(value: tf.Tensor) -> tf.Tensor:
    """int32 scalar -> string of four bytes."""
    letters = tf.constant([bytes([i]) + b"." for i in range(256)])
    digits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(value, [0, 8, 16, 24]), 255)
    return tf.strings.reduce_join(tf.strings.substr(tf.gather(letters, digits), 0, 1))


def decode_webp(encoded: tf.Tensor) -> tf.Tensor:
    """string scalar -> uint8 [height, width, 3]. The graph fails where the runtime does not read WebP."""
    data = Bytes(encoded)
    chunk, frame = _picture(data)
    size = data.little_endian(chunk + 4, 4)
    complete = (size > 0) & (size <= data.length - chunk - _CHUNK_HEADER_BYTES)
    with tf.control_dependencies([tf.debugging.Assert(complete, ["incomplete WebP"])]):
        length = size + _CHUNK_HEADER_BYTES
    # An odd picture is followed by a byte of padding, which the last chunk of a file may lack.
    padded = [tf.strings.substr(encoded, chunk, length), tf.where(size % 2 == 1, tf.constant(b"\0"), b"")]
    total = _little_endian_string(4 + length + size % 2)
    still = tf.strings.join([b"RIFF", total, b"WEBP", *padded])

    def with_channels(channels: int) -> tf.Tensor:
        # DecodeImage, not DecodeWebP: a runtime that is too old for WebP still loads the model.
        return tf.raw_ops.DecodeImage(contents=still, channels=channels, expand_animations=False)[..., :3]

    lossless = data.little_endian(chunk, 4) == _LOSSLESS
    # After a signature byte and two 14-bit sizes: whether alpha is used.
    alpha = tf.bitwise.bitwise_and(data.byte(chunk + 12), 0x10) != 0
    picture = tf.cond(lossless & alpha, lambda: with_channels(4), lambda: with_channels(3))
    return tf.cond(frame > 0, lambda: _on_canvas(picture, data, frame), lambda: picture)


def _on_canvas(picture: tf.Tensor, data: Bytes, frame: tf.Tensor) -> tf.Tensor:
    """A frame of an animation at its place; the canvas around it is transparent black."""

    def three_bytes(position: tf.Tensor | int) -> tf.Tensor:
        return data.little_endian(position, 3)

    left, top = 2 * three_bytes(frame + 8), 2 * three_bytes(frame + 11)
    width, height = 1 + three_bytes(24), 1 + three_bytes(27)
    below, right = height - top - tf.shape(picture)[0], width - left - tf.shape(picture)[1]
    return tf.pad(picture, [[top, below], [left, right], [0, 0]])
