"""Encoded bytes to RGB pixels in TensorFlow ops, as `PIL.Image.open(...).convert("RGB")` has them.

Equal pixel for pixel: JPEG of every kind, PNG, GIF (first frame), uncompressed BMP and WebP, wherever both sides
read the file at all. What TensorFlow's own decoders make different, what is done about it, and what only one side
reads: the table in docs/preprocessing.md.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from isthmus.export.tf_half.decode_bmp import decode_bmp
from isthmus.export.tf_half.decode_cmyk import decode_cmyk
from isthmus.export.tf_half.decode_gif import decode_gif
from isthmus.export.tf_half.decode_webp import decode_webp

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
FORMATS = "JPEG, PNG, GIF, BMP or WebP"


def _bytes(encoded: tf.Tensor, start: int, length: int) -> tf.Tensor:
    """string scalar: `length` bytes from `start`, fewer (or none) where the content is shorter."""
    padded = tf.strings.substr(encoded, 0, start + length) + b"\0" * (start + length)
    return tf.strings.substr(padded, start, length)


def _byte(encoded: tf.Tensor, position: int) -> tf.Tensor:
    """int32 scalar."""
    return tf.cast(tf.io.decode_raw(_bytes(encoded, position, 1), tf.uint8)[0], tf.int32)


def _jpeg(encoded: tf.Tensor) -> tf.Tensor:
    def rgb() -> tf.Tensor:
        # The accurate integer DCT and smooth chroma upsampling are libjpeg's defaults, and so Pillow's.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)

    num_components = tf.image.extract_jpeg_shape(encoded)[2]
    return tf.cond(num_components == 4, lambda: decode_cmyk(encoded), rgb)


def _png(encoded: tf.Tensor) -> tf.Tensor:
    def gray16() -> tf.Tensor:
        # Pillow's 16-bit grayscale to RGB clips at 255; every other 16-bit PNG keeps the upper byte.
        gray = tf.minimum(tf.io.decode_png(encoded, channels=1, dtype=tf.uint16), 255)
        return tf.repeat(tf.cast(gray, tf.uint8), 3, axis=-1)

    depth, color_type = _byte(encoded, 24), _byte(encoded, 25)
    return tf.cond((depth == 16) & (color_type == 0), gray16, lambda: tf.io.decode_png(encoded, channels=3))


def _unknown(encoded: tf.Tensor) -> tf.Tensor:
    refusal = tf.debugging.Assert(tf.strings.length(encoded) < 0, [f"not a {FORMATS}"])
    with tf.control_dependencies([refusal]):
        return tf.zeros([1, 1, 3], tf.uint8)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """One image.

    Args:
        encoded: string scalar: JPEG, PNG, GIF (first frame), BMP, or WebP where the runtime reads it.

    Returns:
        uint8 [height, width, 3]. The graph fails with INVALID_ARGUMENT when the bytes are none of these.
    """
    kinds = [
        (_bytes(encoded, 0, 3) == JPEG_START, _jpeg),
        (_bytes(encoded, 0, 8) == PNG_START, _png),
        (_bytes(encoded, 0, 4) == b"GIF8", decode_gif),
        (_bytes(encoded, 0, 2) == b"BM", decode_bmp),
        ((_bytes(encoded, 0, 4) == b"RIFF") & (_bytes(encoded, 8, 4) == b"WEBP"), decode_webp),
        (tf.constant(True), _unknown),
    ]
    first = tf.argmax(tf.stack([starts for starts, _ in kinds]), output_type=tf.int32)
    image = tf.switch_case(first, [functools.partial(decoder, encoded) for _, decoder in kinds])
    return tf.ensure_shape(image, [None, None, 3])
