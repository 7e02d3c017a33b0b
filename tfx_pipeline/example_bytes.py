"""A `tf.train.Example` as bytes, without TensorFlow.

Beam's workers are processes of their own: importing TensorFlow for one protocol buffer would cost each of them ten
seconds and half a gigabyte. The bytes are those of `SerializeToString(deterministic=True)` (a test compares them):

    Example   { Features features = 1; }                    Feature   { BytesList = 1 | FloatList = 2 | Int64List = 3 }
    Features  { map<string, Feature> feature = 1; }         *List     { repeated … value = 1; }   (numbers packed)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_KIND = {bytes: b"\x0a", float: b"\x12", int: b"\x1a"}


def example_bytes(features: Mapping[str, bytes | int | float]) -> bytes:
    """Serialize one value per feature.

    Args:
        features: bytes, float (kept as float32) or int (64 bits); the order does not matter.
    """
    entries = []
    for name in sorted(features):
        value = features[name]
        kind = type(value)
        if kind is float:
            body = b"\x0a\x04" + struct.pack("<f", value)
        elif kind is int:
            packed = _varint(value if value >= 0 else value + (1 << 64))  # type: ignore[operator]
            body = b"\x0a" + bytes([len(packed)]) + packed
        else:
            body = b"\x0a" + _varint(len(value)) + value  # type: ignore[arg-type, operator]
        feature = _KIND[kind] + _varint(len(body)) + body
        key = _key(name)
        entries.append(b"\x0a" + _varint(len(key) + 1 + len(_varint(len(feature))) + len(feature)))
        entries.append(key + b"\x12" + _varint(len(feature)) + feature)
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


def _key(name: str) -> bytes:
    found = _KEYS.get(name)
    if found is None:
        encoded = name.encode()
        found = _KEYS[name] = b"\x0a" + _varint(len(encoded)) + encoded
    return found


_ONE_BYTE = [bytes([value]) for value in range(0x80)]
_KEYS: dict[str, bytes] = {}
"""The few names there are, encoded once."""
