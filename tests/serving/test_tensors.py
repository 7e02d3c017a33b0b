"""TensorProto and back, against TensorFlow's own functions."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, types_pb2

from isthmus.serving import tensors
from isthmus.serving.errors import RequestError

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.random.default_rng(1).normal(size=1000).astype(np.float32),
    np.random.default_rng(1).normal(size=1000),
    np.array([1, -1], np.int8),
    np.array([1, -1], np.int16),
    np.array([1, -1], np.int32),
    np.array([2**62, -1], np.int64),
    np.array([255], np.uint8),
    np.array([65535], np.uint16),
    np.array([2**32 - 1], np.uint32),
    np.array([2**64 - 1], np.uint64),
    np.array([True, False]),
    np.array([1.5, -2], np.float16),
    np.array([1.5, -2], ml_dtypes.bfloat16),
    np.array([1.5, -2], ml_dtypes.float8_e5m2),
    np.array([1 + 2j], np.complex64),
    np.array([1 + 2j], np.complex128),
    np.array(7.0),
    np.zeros((0, 3), np.int64),
]


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_tensorflow_reads_what_is_written(array: np.ndarray, as_content: bool) -> None:
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(proto, array, as_content=as_content)
    assert bool(proto.tensor_content) is (as_content and array.size > 0)
    made = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy()
    assert (made.dtype, made.shape, made.tobytes()) == (array.dtype, array.shape, array.tobytes())
    read = tensors.array_from_proto(proto)
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_strings(values: list[bytes]) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(proto, array)
    assert tensors.array_from_proto(proto).tolist() == values


def test_strings_as_content() -> None:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=b"\x02\x00\x01abc")
    proto.tensor_shape.dim.add(size=3)
    assert tensors.array_from_proto(proto).tolist() == [b"ab", b"", b"c"]


def test_text_is_written_as_utf8() -> None:
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(proto, np.array(["ä"]))
    assert list(proto.string_val) == ["ä".encode()]


def shaped(*sizes: int, **fields: Any) -> Any:
    proto = tensor_pb2.TensorProto(**fields)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


def test_last_value_fills_the_rest() -> None:
    proto = shaped(2, 2, dtype=types_pb2.DT_FLOAT, float_val=[1.0, 2.0])
    assert tensors.array_from_proto(proto).tolist() == [[1.0, 2.0], [2.0, 2.0]]
    assert tensors.array_from_proto(shaped(2, dtype=types_pb2.DT_INT64)).tolist() == [0, 0]
    surplus = shaped(1, dtype=types_pb2.DT_FLOAT, float_val=[1.0, 2.0])
    assert tensors.array_from_proto(surplus).tolist() == [1.0]


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (shaped(2), "unsupported dtype 0"),
        (shaped(-1, dtype=types_pb2.DT_FLOAT), "negative dimension"),
        (shaped(2**30, 2**30, dtype=types_pb2.DT_FLOAT), "too many elements"),
        (shaped(2**36, dtype=types_pb2.DT_FLOAT, float_val=[1.0]), "1 values for 68719476736 elements"),
        (shaped(2, dtype=types_pb2.DT_FLOAT, tensor_content=b"1234"), "tensor_content holds 4 bytes, not 8"),
        (shaped(1, dtype=types_pb2.DT_STRING, tensor_content=b"\x09a"), "no list of strings"),
        (shaped(1, dtype=types_pb2.DT_STRING, tensor_content=b"\xff"), "truncated varint"),
        (shaped(1, dtype=types_pb2.DT_RESOURCE), "unsupported dtype 20"),
    ],
)
def test_no_tensor(proto: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tensors.array_from_proto(proto)


def test_unknown_rank() -> None:
    proto = shaped(dtype=types_pb2.DT_FLOAT)
    proto.tensor_shape.unknown_rank = True
    with pytest.raises(ValueError, match="unknown rank"):
        tensors.array_from_proto(proto)


def test_array_without_a_tensor_type() -> None:
    with pytest.raises(RequestError, match="no tensor type for numpy's datetime64"):
        tensors.fill_proto(tensor_pb2.TensorProto(), np.array(["2026-01-01"], "datetime64[D]"))
