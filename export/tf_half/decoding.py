"""Encoded bytes to RGB pixels in TensorFlow ops, as `PIL.Image.open(...).convert("RGB")` has them.

Equal pixel for pixel: JPEG of every kind, PNG, GIF (first frame), uncompressed BMP and WebP, wherever both sides
read the file at all. What TensorFlow's own decoders make different, what is done about it, and what only one side
reads: the table in docs/preprocessing.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes
from isthmus.export.tf_half.decode_bmp import decode_bmp
from isthmus.export.tf_half.decode_cmyk import decode_cmyk
from isthmus.export.tf_half.decode_gif import decode_gif
from isthmus.export.tf_half.decode_webp import decode_webp

FORMATS = "JPEG, PNG, GIF, BMP or WebP"


def _rgb_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    # The accurate integer DCT and smooth chroma upsampling are libjpeg's defaults, and so Pillow's.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)


def _is_cmyk(encoded: tf.Tensor) -> tf.Tensor:
    return tf.image.extract_jpeg_shape(encoded)[2] == 4


def _png(encoded: tf.Tensor) -> tf.Tensor:
    def gray16() -> tf.Tensor:
        # Pillow's 16-bit grayscale to RGB clips at 255; every other 16-bit PNG keeps the upper byte.
        gray = tf.minimum(tf.io.decode_png(encoded, channels=1, dtype=tf.uint16), 255)
        return tf.repeat(tf.cast(gray, tf.uint8), 3, axis=-1)

    depth, color_type = tf.unstack(Bytes(tf.strings.substr(encoded, 0, 26)).span(24, 2))
    return tf.cond((depth == 16) & (color_type == 0), gray16, lambda: tf.io.decode_png(encoded, channels=3))


# First bytes -> decoder; a dot stands for any byte.
_DECODERS = {
    b"\xff\xd8\xff": decode_cmyk,  # the rare ones of its kind; see _rgb_jpeg
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


def _kind(encoded: tf.Tensor) -> tf.Tensor:
    """int32 scalar: index of the decoder, or their number for what is none of these formats."""
    padded = tf.strings.join([tf.strings.substr(encoded, 0, _LONGEST), tf.constant(bytes(_LONGEST))])
    start = tf.io.decode_raw(padded, tf.uint8)[:_LONGEST]
    starts_so = tf.reduce_all((start == _VALUES) | ~_COUNTS, axis=1)
    return tf.argmax(tf.concat([starts_so, [True]], axis=0), output_type=tf.int32)


# What saving may rename: functions of the saved graph whose names nobody needs.
SHARED = "preprocessing_"


def shared(
    function: Callable[[tf.Tensor], tf.Tensor], spec: tf.TensorSpec
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`function` as one function of the saved graph, from wherever it is called."""

    def called(value: tf.Tensor) -> tf.Tensor:
        return function(value)

    called.__name__ = f"{SHARED}{function.__name__.strip('_')}"
    return tf.function(called, input_signature=[spec], autograph=False)


class Decoders:
    """The decoders of one saved graph: each stands in it once, whoever calls it."""

    def __init__(self) -> None:
        spec = tf.TensorSpec([], tf.string)
        self._cmyk, *self._others = (shared(decoder, spec) for decoder in _DECODERS.values())

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """One image.

        Args:
            encoded: string scalar: JPEG, PNG, GIF (first frame), BMP, or WebP where the runtime reads it.

        Returns:
            uint8 [height, width, 3]. The graph fails with INVALID_ARGUMENT when the bytes are none of these.
        """

        def jpeg() -> tf.Tensor:
            return tf.cond(_is_cmyk(encoded), lambda: self._cmyk(encoded), lambda: _rgb_jpeg(encoded))

        branches = [functools.partial(decoder, encoded) for decoder in (*self._others, _unknown)]
        return tf.ensure_shape(tf.switch_case(_kind(encoded), [jpeg, *branches]), [None, None, 3])

    def decode_or_nothing(self, encoded: tf.Tensor) -> tf.Tensor:
        """As `decode`, but uint8 [0, 0, 3] for what cannot be read.

        A graph has no `try`; a tf.data pipeline has (`ignore_errors`). TensorFlow prepares a pipeline's function
        anew at every request, a millisecond for all decoders together: so each has one of its own, and the common
        one is tiny.
        """

        def nothing() -> tf.Tensor:
            return tf.zeros([0, 0, 3], tf.uint8)

        def tried(decoder: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
            decoded = tf.data.Dataset.from_tensors(encoded).map(decoder).ignore_errors()
            failed = tf.data.Dataset.from_tensors((tf.constant(False), nothing()))
            return as_written(decoded.concatenate(failed).take(1)).get_single_element()

        def image(decoder: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
            return tried(lambda one: (tf.constant(False), decoder(one)))[1]

        def jpeg() -> tf.Tensor:
            is_cmyk, rgb = tried(lambda one: (_is_cmyk(one), _rgb_jpeg(one)))
            return tf.cond(is_cmyk, lambda: image(self._cmyk), lambda: rgb)

        branches = [functools.partial(image, decoder) for decoder in self._others]
        return tf.ensure_shape(tf.switch_case(_kind(encoded), [jpeg, *branches, nothing]), [None, None, 3])


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """One image; see `Decoders.decode`."""
    return Decoders().decode(encoded)


def as_written(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Without the optimisers that would rewrite and measure the pipeline at every request."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return dataset.with_options(options)
