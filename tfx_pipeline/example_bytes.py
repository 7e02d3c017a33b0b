"""A `tf.train.Example` as bytes, without TensorFlow.

Beam's workers are processes of their own: importing TensorFlow for one protocol buffer would cost each of them ten
seconds and half a gigabyte, and building the message costs as much as decoding a small PNG. The features are in order
of their names (protobuf's own deterministic order is none that it promises); a test compares the rest with TensorFlow.

    Example   { Features features = 1; }                    Feature   { BytesList = 1 | FloatList = 2 | Int64List = 3 }
    Features  { map<string, Feature> feature = 1; }         *List     { repeated … value = 1; }   (numbers packed)
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping


def example_bytes(features: Mapping[str, bytes | int | float]) -> bytes:
    """Serialize one value per feature.

    Args:
        features: bytes, float (kept as float32) or int (64 bits); the order does not matter.
    """
    entries: list[bytes] = []
    for name in sorted(features):
        value = features[name]
        if type(value) is float:
            entries += (_float_prefix(name), _FLOAT.pack(value))
            continue
        if isinstance(value, bytes):
            content, kind = value, b"\x0a"
        else:
            content, kind = _varint(int(value) & _64_BITS), b"\x1a"
        size = len(content)
        value_size = 1 + len(_varint(size)) + size
        feature_size = 1 + len(_varint(value_size)) + value_size
        key = _key(name)
        entries += (
            b"\x0a",
            _varint(len(key) + 1 + len(_varint(feature_size)) + feature_size),
            key,
            b"\x12",
            _varint(feature_size),
            kind,
            _varint(value_size),
            b"\x0a",
            _varint(size),
            content,
        )
    whole = b"".join(entries)
    return b"\x0a" + _varint(len(whole)) + whole


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@functools.cache
def _key(name: str) -> bytes:
    encoded = name.encode()
    return b"\x0a" + _varint(len(encoded)) + encoded


@functools.cache
def _float_prefix(name: str) -> bytes:
    """Everything of a float's entry but its four bytes: they all have the same length."""
    feature = b"\x12\x06\x0a\x04"
    key = _key(name)
    return b"\x0a" + _varint(len(key) + 2 + len(feature) + 4) + key + b"\x12\x08" + feature


_ONE_BYTE = [bytes([value]) for value in range(0x80)]
_FLOAT = struct.Struct("<f")
_64_BITS = (1 << 64) - 1
