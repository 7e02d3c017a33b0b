"""TensorFlow's own loader and session through its C API: values, errors and memory that is given back."""

from __future__ import annotations

import concurrent.futures
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf

from isthmus.serving import c_session
from isthmus.serving.c_session import CSession
from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

DTYPES = (
    tf.float32,
    tf.float64,
    tf.int32,
    tf.uint8,
    tf.int64,
    tf.bool,
    tf.float16,
    tf.bfloat16,
    tf.complex64,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Echoes tensors of many types; `scaled` multiplies by a variable of 16 MiB."""
    module = tf.Module()
    module.weights = tf.Variable(tf.ones([4 << 20]))

    def echo(dtype: tf.DType) -> tf.types.experimental.ConcreteFunction:
        spec = tf.TensorSpec(None, dtype, name="x")
        return tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec]).get_concrete_function()

    def scaled(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * module.weights[0], "all": module.weights}

    signatures = {dtype.name: echo(dtype) for dtype in (*DTYPES, tf.string)}
    signatures["scaled"] = tf.function(
        scaled, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    ).get_concrete_function()
    folder = tmp_path_factory.mktemp("saved") / "1"
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.fixture
def session(saved: Path) -> Iterator[CSession]:
    opened = CSession(saved, tags=["serve"], config=b"")
    yield opened
    opened.close()


def ask(session: CSession, signature: str, value: np.ndarray, **options: int) -> np.ndarray:
    definition = session.meta_graph.signature_def[signature]
    feeds = [(definition.inputs["x"].name, value)]
    return session.run(feeds, [definition.outputs["y"].name], **options)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_values_of_every_type_and_shape_come_back(
    session: CSession, dtype: tf.DType, shape: tuple[int, ...]
) -> None:
    value = np.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype.as_numpy_dtype)
    answer = ask(session, dtype.name, value)
    assert (answer.dtype, answer.shape) == (value.dtype, shape)
    np.testing.assert_array_equal(answer, value)
    definition = session.meta_graph.signature_def[dtype.name]
    assert session.dtype(definition.inputs["x"].name) == dtype.as_datatype_enum


def test_arrays_that_are_not_contiguous_or_not_aligned(session: CSession) -> None:
    strided = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::3]
    np.testing.assert_array_equal(ask(session, "float32", strided), strided)
    crooked = np.frombuffer(b"\0" + np.arange(5, dtype=np.float32).tobytes(), np.float32, offset=1)
    np.testing.assert_array_equal(ask(session, "float32", crooked), np.arange(5))


@pytest.mark.parametrize("length", [0, 1, 22, 23, 24, 5000])
def test_strings_of_every_length(session: CSession, length: int) -> None:
    """TensorFlow keeps up to 22 bytes inside the string's own structure."""
    texts = np.array([bytes([number]) * length for number in range(7)], object)
    assert ask(session, "string", texts).tolist() == texts.tolist()
    assert ask(session, "string", texts.reshape(7, 1)).shape == (7, 1)


def test_text_is_sent_as_utf8_and_other_objects_are_refused(session: CSession) -> None:
    assert ask(session, "string", np.array("grün")).item() == "grün".encode()
    with pytest.raises(RequestError, match="holds bytes or text, not int"):
        ask(session, "string", np.array([1, b"x"], object))
    assert not c_session._lent


def test_errors_are_tensorflows_own(session: CSession, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"Expects arg\[0\] to be float but double is provided") as caught:
        ask(session, "float32", np.zeros(2))
    assert caught.value.code is Code.INVALID_ARGUMENT
    for name in ("nothing:0", f"{session.meta_graph.signature_def['scaled'].inputs['x'].name[:-1]}7"):
        with pytest.raises(RequestError, match=f"Tensor {name}, .* not found in the Graph") as caught:
            session.run([], [name])
        assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(RequestError, match="Could not find SavedModel"):
        CSession(tmp_path, tags=["serve"], config=b"")
    with pytest.raises(RequestError, match="Unparseable ConfigProto"):
        CSession(tmp_path, tags=["serve"], config=b"\xff")


def test_the_graph_is_left_out_of_what_is_parsed(session: CSession) -> None:
    assert not session.meta_graph.HasField("graph_def")
    assert session.meta_graph.meta_info_def.tags == ["serve"]


def test_many_threads_and_nothing_is_kept(session: CSession) -> None:
    def one(number: int) -> bool:
        text = np.array([f"{number} " * 40], object)
        return bool(ask(session, "string", text)[0].decode() == text[0])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(400)))
    assert not c_session._lent


def test_memory_is_given_back(saved: Path) -> None:
    def resident_after(rounds: int) -> int:
        for _ in range(rounds):
            opened = CSession(saved, tags=["serve"], config=b"")
            ask(opened, "scaled", np.ones(3, np.float32))
            opened.close()
            opened.close()
        gc.collect()
        return psutil.Process().memory_info().rss

    first = resident_after(5)
    # Each has 16 MiB of weights.
    assert resident_after(20) - first < 64 << 20
