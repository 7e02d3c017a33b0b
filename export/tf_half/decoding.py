"""Encoded bytes to RGB pixels in TensorFlow ops, as `PIL.Image.open(...).convert("RGB")` has them.

Equal pixel for pixel: JPEG of every kind, PNG, GIF (first frame), uncompressed BMP and WebP, wherever both sides
read the file at all. What TensorFlow's own decoders make different, what is done about it, and what only one side
reads: the table in docs/preprocessing.md.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes
from isthmus.export.tf_half.decode_bmp import decode_bmp
from isthmus.export.tf_half.decode_cmyk import decode_cmyk
from isthmus.export.tf_half.decode_gif import decode_gif
from isthmus.export.tf_half.decode_webp import decode_webp

FORMATS = "JPEG, PNG, GIF, BMP or WebP"


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

    depth, color_type = tf.unstack(Bytes(tf.strings.substr(encoded, 0, 26)).span(24, 2))
    return tf.cond((depth == 16) & (color_type == 0), gray16, lambda: tf.io.decode_png(encoded, channels=3))


# First bytes -> decoder; a dot stands for any byte.
_DECODERS = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF8": decode_gif,
    b"BM": decode_bmp,
    b"RIFF....WEBP": decode_webp,
}
_LONGEST = max(map(len, _DECODERS))
_VALUES = np.array([list(start.ljust(_LONGEST, b".")) for start in _DECODERS], np.uint8)
_COUNTS = ord(".") != _VALUES


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
    padded = tf.strings.join([tf.strings.substr(encoded, 0, _LONGEST), tf.constant(bytes(_LONGEST))])
    start = tf.io.decode_raw(padded, tf.uint8)[:_LONGEST]
    # The branch after the last is for what is none of them.
    starts_so = tf.reduce_all((start == _VALUES) | ~_COUNTS, axis=1)
    kind = tf.argmax(tf.concat([starts_so, [True]], axis=0), output_type=tf.int32)
    branches = [functools.partial(decoder, encoded) for decoder in (*_DECODERS.values(), _unknown)]
    return tf.ensure_shape(tf.switch_case(kind, branches), [None, None, 3])
