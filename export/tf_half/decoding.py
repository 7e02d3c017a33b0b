"""Encoded bytes to RGB pixels in TensorFlow ops, as `PIL.Image.open(...).convert("RGB")` has them.

docs/preprocessing.md has the table of what is equal and what is not. In short: every JPEG, PNG, BMP and lossy or
lossless WebP that both sides read is equal pixel for pixel, with these exceptions:

* CMYK and YCCK JPEG: TensorFlow cuts `K * C / 255` where Pillow rounds it, so values are up to 1 level too low.
* GIF: transparent pixels of the first frame, and canvas that it does not cover, are black; Pillow shows the
  palette's colour.
* EXIF orientation is applied by neither.
"""

from __future__ import annotations

import tensorflow as tf

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
    # The accurate integer DCT and smooth chroma upsampling are libjpeg's defaults, and so Pillow's.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)


def _png(encoded: tf.Tensor) -> tf.Tensor:
    def gray16() -> tf.Tensor:
        # Pillow's 16-bit grayscale to RGB clips at 255; every other 16-bit PNG keeps the upper byte.
        gray = tf.minimum(tf.io.decode_png(encoded, channels=1, dtype=tf.uint16), 255)
        return tf.repeat(tf.cast(gray, tf.uint8), 3, axis=-1)

    depth, color_type = _byte(encoded, 24), _byte(encoded, 25)
    return tf.cond((depth == 16) & (color_type == 0), gray16, lambda: tf.io.decode_png(encoded, channels=3))


def _webp(encoded: tf.Tensor) -> tf.Tensor:
    # DecodeImage, not DecodeWebP: a runtime that is too old for WebP still loads the model.
    # An extended header says in one byte whether there is alpha (0x10) or animation (0x02); a lossless one
    # has its alpha bit after two 14-bit sizes.
    extended = (_bytes(encoded, 12, 4) == b"VP8X") & (tf.bitwise.bitwise_and(_byte(encoded, 20), 0x12) != 0)
    lossless = (_bytes(encoded, 12, 4) == b"VP8L") & (tf.bitwise.bitwise_and(_byte(encoded, 24), 0x10) != 0)

    def with_channels(channels: int) -> tf.Tensor:
        return tf.raw_ops.DecodeImage(contents=encoded, channels=channels, expand_animations=False)[..., :3]

    return tf.cond(extended | lossless, lambda: with_channels(4), lambda: with_channels(3))


def _other(encoded: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.DecodeImage(contents=encoded, channels=3, expand_animations=False)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """One image.

    Args:
        encoded: string scalar: JPEG, PNG, GIF (first frame), BMP, or WebP where the runtime reads it.

    Returns:
        uint8 [height, width, 3]. The graph fails with INVALID_ARGUMENT when the bytes are none of these.
    """
    is_jpeg = _bytes(encoded, 0, 3) == JPEG_START
    is_png = _bytes(encoded, 0, 8) == PNG_START
    is_webp = (_bytes(encoded, 0, 4) == b"RIFF") & (_bytes(encoded, 8, 4) == b"WEBP")
    branch = tf.where(is_jpeg, 0, tf.where(is_png, 1, tf.where(is_webp, 2, 3)))
    image = tf.switch_case(
        branch,
        [lambda: _jpeg(encoded), lambda: _png(encoded), lambda: _webp(encoded), lambda: _other(encoded)],
    )
    return tf.ensure_shape(image, [None, None, 3])
