"""Our bytes of a tf.train.Example are what TensorFlow would write, but for the order of the features."""

from __future__ import annotations

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.tfx_pipeline.example_bytes import example_bytes

VALUES = st.one_of(
    st.binary(max_size=300),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
)


def by_tensorflow(features: dict[str, bytes | int | float]) -> bytes:
    made = {}
    for name, value in features.items():
        if isinstance(value, bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        elif isinstance(value, int):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        else:
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    example = tf.train.Example(features=tf.train.Features(feature=made))
    return bytes(example.SerializeToString(deterministic=True))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=40), VALUES, min_size=1, max_size=8))
def test_the_same_bytes(features: dict[str, bytes | int | float]) -> None:
    ours, theirs = example_bytes(features), by_tensorflow(features)
    assert tf.train.Example.FromString(ours) == tf.train.Example.FromString(theirs)
    assert len(ours) == len(theirs)
    assert ours == example_bytes(dict(reversed(features.items())))


def test_long_values() -> None:
    for size in (126, 127, 128, 16383, 16384, 70_000, 3_000_000):
        features: dict[str, bytes | int | float] = {"image/encoded": b"x" * size, "a": 1}
        ours, theirs = example_bytes(features), by_tensorflow(features)
        assert tf.train.Example.FromString(ours) == tf.train.Example.FromString(theirs)
        assert len(ours) == len(theirs)
