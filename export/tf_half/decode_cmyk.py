"""JPEG with four components (CMYK and YCCK) as Pillow converts it to RGB, exactly.

TensorFlow gives RGB only, and cuts where Pillow rounds: `K * C / 255`. Its two formulas (with and without an Adobe
marker: `K * C / 255` and `(255 - K) * (255 - C) / 255`) are enough to find the components themselves, once one of
them is known. So the file is decoded four times with small changes to its header:

* a quantisation table of zeros makes a component 128 everywhere: K for two of the decodings, C for the other two;
* with an Adobe marker that says "no transform", and without any: A = 128 * C // 255 and B = 127 * (255 - C) // 255,
  so that C = 127 + A - B.

Then YCCK is converted to CMYK with libjpeg's integers, and CMYK to RGB with Pillow's. Four decodings for a kind of
file that is rare; other JPEGs do not come here.
"""

from __future__ import annotations

import tensorflow as tf

from isthmus.export.tf_half.byte_reading import Bytes

# Version 100, two words of flags, transform 0.
_ADOBE = b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, 0])
_ADOBE_TRANSFORM_OFFSET = 15
_YCCK = 2
_START_OF_SCAN, _APP14 = 0xDA, 0xEE
# Start of frame, all kinds: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_ZERO_TABLE = 3
_ZERO_TABLE_SEGMENT = b"\xff\xdb\x00\x43" + bytes([_ZERO_TABLE]) + bytes(64)


def _joined(*parts: tf.Tensor | bytes) -> tf.Tensor:
    """string scalar. Each literal is made a constant on its own: in a list numpy would cut trailing zeros."""
    return tf.strings.join([tf.constant(p) if isinstance(p, bytes) else p for p in parts])


def _without_adobe(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The file without Adobe markers, the position of its frame header in that, and the Adobe transform."""
    data = Bytes(encoded)

    def in_header(position: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (position + 4 < data.length) & (data.byte(position + 1) != _START_OF_SCAN)

    def step(
        position: tf.Tensor, kept: tf.Tensor, frame: tf.Tensor, transform: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        marker = data.byte(position + 1)
        # 0xFF before a marker is padding.
        length = tf.where(marker == 0xFF, 1, 2 + data.big_endian(position + 2))
        segment = tf.strings.substr(encoded, position, length)
        is_adobe = (marker == _APP14) & (tf.strings.substr(encoded, position + 4, 5) == b"Adobe")
        is_frame = (tf.bitwise.bitwise_and(marker, 0xF0) == 0xC0) & tf.reduce_all(
            marker != tf.constant(_NOT_FRAMES)
        )
        frame = tf.where(is_frame, tf.strings.length(kept), frame)
        transform = tf.where(is_adobe, data.byte(position + _ADOBE_TRANSFORM_OFFSET), transform)
        return position + length, _joined(kept, tf.where(is_adobe, b"", segment)), frame, transform

    start = (tf.constant(2), tf.strings.substr(encoded, 0, 2), tf.constant(0), tf.constant(0))
    position, kept, frame, transform = tf.while_loop(in_header, step, start)
    return _joined(kept, tf.strings.substr(encoded, position, -1)), frame, transform


def _with_constant(plain: tf.Tensor, frame: tf.Tensor, component: int) -> tf.Tensor:
    """The file with `component` quantised by zeros: 128 everywhere."""
    table_of = frame + 12 + 3 * component
    return _joined(
        tf.strings.substr(plain, 0, 2),
        _ZERO_TABLE_SEGMENT,
        tf.strings.substr(plain, 2, table_of - 2),
        bytes([_ZERO_TABLE]),
        tf.strings.substr(plain, table_of + 1, -1),
    )


def _with_adobe(contents: tf.Tensor) -> tf.Tensor:
    """The file with a marker that says: CMYK, not transformed."""
    return _joined(tf.strings.substr(contents, 0, 2), _ADOBE, tf.strings.substr(contents, 2, -1))


def _decode(contents: tf.Tensor) -> tf.Tensor:
    rgb = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)
    return tf.cast(rgb, tf.int32)


def _solved(contents: tf.Tensor) -> tf.Tensor:
    """int32 [h, w, 3]: the factor of each channel that is not 128."""
    return 127 + _decode(_with_adobe(contents)) - _decode(contents)


def _ycc_to_cmy(ycc: tf.Tensor) -> tf.Tensor:
    """libjpeg's jdcolor.c: 16-bit fixed point, each product rounded on its own but for green's sum."""
    y, cb, cr = tf.unstack(ycc, axis=-1)
    cb, cr = cb - 128, cr - 128

    def fix(value: float) -> int:
        return int(value * (1 << 16) + 0.5)

    half = 1 << 15
    red = y + tf.bitwise.right_shift(fix(1.40200) * cr + half, 16)
    green = y + tf.bitwise.right_shift(-fix(0.34414) * cb - fix(0.71414) * cr + half, 16)
    blue = y + tf.bitwise.right_shift(fix(1.77200) * cb + half, 16)
    return tf.clip_by_value(255 - tf.stack([red, green, blue], axis=-1), 0, 255)


def decode_cmyk(encoded: tf.Tensor) -> tf.Tensor:
    """string scalar, a JPEG with four components -> uint8 [height, width, 3].

    A file whose components use all four quantisation tables cannot be taken apart like this: it gets TensorFlow's
    values, at most 1 level below Pillow's.
    """
    plain, frame, transform = _without_adobe(encoded)
    tables = tf.stack([Bytes(plain).byte(frame + 12 + 3 * i) for i in range(4)])

    def exact() -> tf.Tensor:
        cmy = _solved(_with_constant(plain, frame, 3))
        black = _solved(_with_constant(plain, frame, 0))[..., :1]
        cmy = tf.cond(transform == _YCCK, lambda: _ycc_to_cmy(cmy), lambda: cmy)
        # Pillow takes every such file for inverted: what is stored is 255 minus the ink.
        product = (255 - cmy) * black + 128
        ink = tf.bitwise.right_shift(tf.bitwise.right_shift(product, 8) + product, 8)
        return tf.cast(tf.clip_by_value(black - ink, 0, 255), tf.uint8)

    def close() -> tf.Tensor:
        return tf.cast(_decode(tf.where(transform == _YCCK, encoded, _with_adobe(plain))), tf.uint8)

    return tf.cond(tf.reduce_all(tables != _ZERO_TABLE), exact, close)
