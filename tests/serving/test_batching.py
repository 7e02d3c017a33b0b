"""Batching by TensorFlow's scheduler: what is run together, padded, refused; what each caller gets back."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.serving import batching
from isthmus.serving.batching import BatchedModel
from isthmus.serving.batching_parameters import BatchingParameters, read_parameters
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.inference import CallOptions, predict
from isthmus.serving.savedmodel import SavedModel, SessionOptions
from isthmus.serving.status import Code

Make = Callable[..., BatchedModel]


class Recorded(SavedModel):
    """A SavedModel that remembers the number of rows of each computation."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        super().__init__(path, options)
        self.batch_sizes: list[int] = []

    def run(self, feeds: Any, fetches: Any, *, timeout_ms: int = 0) -> list[np.ndarray]:
        """Remember, then run."""
        self.batch_sizes.append(len(feeds[0][1]))
        return super().run(feeds, fetches, timeout_ms=timeout_ms)


@pytest.fixture
def make(models_root: Path) -> Iterator[Make]:
    """Makes batched echo models; `recorded` of the last one has its batch sizes."""
    made: list[BatchedModel] = []

    def build(**parameters: Any) -> BatchedModel:
        model = Recorded(models_root / "echo" / "7", SessionOptions())
        made.append(BatchedModel(model, BatchingParameters(**parameters)))
        made[-1].recorded = model.batch_sizes  # type: ignore[attr-defined]
        return made[-1]

    yield build
    for model in made:
        model.close()


def echo(model: BatchedModel, values: Any, signature: str = "echo_float32") -> np.ndarray:
    array = np.asarray(values, np.float32)
    (output,) = predict(model, signature, {"x": array}).values()
    return output


def test_requests_run_together_and_each_gets_its_own(make: Make) -> None:
    model = make(max_batch_size=8, batch_timeout_micros=100_000, num_batch_threads=1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: echo(model, [[i, -i]]).tolist(), range(8)))
    assert answers == [[[float(i), float(-i)]] for i in range(8)]
    assert sum(model.recorded) == 8
    assert max(model.recorded) > 1


def test_batches_are_padded_to_the_next_allowed_size(make: Make) -> None:
    model = make(max_batch_size=8, allowed_batch_sizes=(4, 8))
    assert echo(model, [1, 2, 3, 4, 5]).tolist() == [1, 2, 3, 4, 5]
    assert echo(model, [1]).tolist() == [1]
    assert model.recorded == [8, 4]


def test_rows_of_another_shape_have_a_queue_of_their_own(make: Make) -> None:
    model = make(max_batch_size=8, batch_timeout_micros=50_000)
    shapes = [(1, 2), (1, 3)] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda shape: echo(model, np.ones(shape)).shape, shapes))
    assert answers == shapes


def test_several_inputs_and_string_outputs(make: Make) -> None:
    model = make(max_batch_size=8)
    outputs = predict(model, "pair", {"a": np.array([1.0], np.float32), "b": np.array([[2, 3]], np.int32)})
    assert outputs["sum"].tolist() == [6.0]
    assert outputs["copy"].tolist() == [[2, 3]]
    strings = np.array([b"a", b"\x00b"], object)
    assert predict(model, "echo_string", {"x": strings})["y"].tolist() == [b"a", b"\x00b"]


@pytest.mark.parametrize(
    ("values", "signature", "code", "text"),
    [
        (
            1.0,
            "echo_float32",
            Code.INVALID_ARGUMENT,
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            np.zeros(9),
            "echo_float32",
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        ),
    ],
)
def test_refused(make: Make, values: Any, signature: str, code: Code, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        echo(make(max_batch_size=8), values, signature)
    assert (caught.value.code, caught.value.message) == (code, text)


def test_different_numbers_of_rows(make: Make) -> None:
    inputs = {"a": np.zeros(2, np.float32), "b": np.zeros((3, 2), np.int32)}
    with pytest.raises(RequestError, match="input tensors must have equal 0th-dimension size"):
        predict(make(), "pair", inputs)


def test_a_signature_without_inputs(make: Make) -> None:
    with pytest.raises(RequestError) as caught:
        predict(make(), "no_inputs", {})
    assert (caught.value.code, caught.value.message) == (
        Code.INVALID_ARGUMENT,
        "Batching Run() must have at least one input tensor",
    )


def test_outputs_without_rows(make: Make) -> None:
    with pytest.raises(RequestError, match="Batched output tensor has 0 dimensions"):
        echo(make(), [1.0, 2.0], "scalar")


def test_failed_computation_keeps_its_code_and_text(make: Make) -> None:
    model = make(max_batch_size=8)
    for _ in range(2):
        with pytest.raises(RequestError, match="no number : Tensor had Inf values") as caught:
            echo(model, [1.0], "fails")
        assert caught.value.code is Code.INVALID_ARGUMENT
    assert echo(model, [1.0]).tolist() == [1.0]


def test_full_queue_is_unavailable(make: Make) -> None:
    model = make(max_batch_size=1, max_enqueued_batches=1, num_batch_threads=1)
    echo(model, [1.0], "slow")

    def ask(value: int) -> Any:
        try:
            return echo(model, [value], "slow").tolist()
        except RequestError as error:
            return error

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    refused = [answer for answer in answers if isinstance(answer, RequestError)]
    assert refused
    assert {error.code for error in refused} == {Code.UNAVAILABLE}
    assert "The batch scheduling queue to which this task was submitted is full" in refused[0].message
    assert all(
        answer == [float(i)] for i, answer in enumerate(answers) if not isinstance(answer, RequestError)
    )


def test_large_requests_are_split(make: Make) -> None:
    model = make(
        max_batch_size=8,
        max_execution_batch_size=4,
        allowed_batch_sizes=(4,),
        enable_large_batch_splitting=True,
    )
    assert echo(model, range(8)).tolist() == list(range(8))
    assert set(model.recorded) == {4}


@pytest.mark.parametrize("failing", [0, 5, 9])
def test_a_split_request_fails_as_a_whole(make: Make, failing: int) -> None:
    """Whichever of its batches fails: no row of zeros is passed off as an answer, and the text is the model's."""
    model = make(max_batch_size=12, max_execution_batch_size=4, enable_large_batch_splitting=True)
    rows = np.zeros(12, np.float32)
    assert echo(model, rows, "table").tolist() == [1.0] * 12
    rows[failing] = 7
    with pytest.raises(RequestError, match="is not in \\[0, 3\\)") as caught:
        echo(model, rows, "table")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert echo(model, np.ones(12), "table").tolist() == [2.0] * 12


def test_a_split_request_of_matrices_fails_with_the_models_text(make: Make) -> None:
    """The zeros of a failed batch are a vector, which does not go together with its neighbour's matrix."""
    model = make(max_batch_size=8, max_execution_batch_size=4, enable_large_batch_splitting=True)
    run, numbers = model._model.run, itertools.count(1)

    def fail_every_other(feeds: Any, fetches: Any, *, timeout_ms: int = 0) -> list[np.ndarray]:
        if next(numbers) % 2:
            return run(feeds, fetches, timeout_ms=timeout_ms)
        raise RequestError(Code.RESOURCE_EXHAUSTED, "OOM when allocating tensor")

    model._model.run = fail_every_other  # type: ignore[method-assign]
    with pytest.raises(RequestError, match=r"^RESOURCE_EXHAUSTED: OOM when allocating tensor$"):
        echo(model, np.ones((8, 3)))


# ---- pad_variable_length_inputs ----


def together(model: BatchedModel, signature: str, *values: np.ndarray) -> list[Any]:
    """The answers, or errors, of requests that are all in one batch, in this order: it runs when it is full."""
    assert model.parameters.max_batch_size == sum(map(len, values))

    def ask(value: np.ndarray) -> Any:
        try:
            (output,) = predict(model, signature, {"x": value}).values()
        except RequestError as error:
            return error
        return output

    with ThreadPoolExecutor(len(values)) as pool:
        answers = []
        for number, value in enumerate(values, 1):
            answers.append(pool.submit(ask, value))
            while number < len(values) and sum(len(queue.calls) for queue in model._queues.values()) < number:
                time.sleep(0.001)
        return [answer.result() for answer in answers]


def padding(make: Make, max_batch_size: int) -> BatchedModel:
    return make(
        max_batch_size=max_batch_size, batch_timeout_micros=60_000_000, pad_variable_length_inputs=True
    )


def test_rows_of_other_shapes_are_padded_to_the_longest(make: Make) -> None:
    """With the tensor's own first element, in every dimension but the first; nothing is cut off the answer."""
    model = padding(make, 4)
    short = np.array([[[1], [2]], [[3], [4]]], np.float32)
    answers = together(
        model, "echo_float32", short, np.arange(5.0, 9.0, dtype=np.float32).reshape(1, 1, 4), short[:1]
    )
    assert [answer.tolist() for answer in answers] == [
        [[[1, 1, 1, 1], [2, 1, 1, 1]], [[3, 1, 1, 1], [4, 1, 1, 1]]],
        [[[5, 6, 7, 8], [5, 5, 5, 5]]],
        [[[1, 1, 1, 1], [2, 1, 1, 1]]],
    ]
    assert model.recorded == [4]


def test_padded_strings(make: Make) -> None:
    rows = [np.array([[b"a", b"b"]], object), np.array([[b"c"]], object)]
    answers = together(padding(make, 2), "echo_string", *rows)
    assert [answer.tolist() for answer in answers] == [[[b"a", b"b"]], [[b"c", b"c"]]]


def test_a_row_without_an_element_cannot_be_padded(make: Make) -> None:
    answers = together(
        padding(make, 2), "echo_float32", np.ones((1, 0), np.float32), np.ones((1, 2), np.float32)
    )
    assert {str(answer) for answer in answers} == {
        "INVALID_ARGUMENT: Got empty tensor in batch of non-empty tensors."
    }


def test_rows_of_too_many_dimensions_cannot_be_padded(make: Make) -> None:
    with pytest.raises(RequestError, match="Only tensors with rank from 1 to 6 can be padded"):
        echo(make(pad_variable_length_inputs=True), np.ones((1,) * 7))


def test_padding_to_the_allowed_sizes_and_splitting_go_on(make: Make) -> None:
    model = make(
        max_batch_size=12,
        max_execution_batch_size=4,
        allowed_batch_sizes=(2, 4),
        enable_large_batch_splitting=True,
        pad_variable_length_inputs=True,
    )
    values = np.arange(18, dtype=np.float32).reshape(9, 2)
    assert echo(model, values).tolist() == values.tolist()
    assert set(model.recorded) <= {2, 4}
    outputs = predict(model, "pair", {"a": np.ones(1, np.float32), "b": np.array([[2, 3]], np.int32)})
    assert outputs["sum"].tolist() == [6.0]


# ---- the queues ----


def test_more_kinds_of_calls_than_queues(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client turns batching off for the others by asking for ever more kinds: the oldest queue goes."""
    monkeypatch.setattr(batching, "_MAX_NUM_QUEUES", 3)
    model = make(max_batch_size=4, allowed_batch_sizes=(4,))
    for width in (1, 2, 3, 1, 4, 5, 1, 2):
        assert echo(model, np.full((2, width), width)).tolist() == [[width] * width] * 2
    assert model.recorded == [4] * 8
    assert [shape for ((_, _, shape),), _ in model._queues] == [(5,), (1,), (2,)]


def test_queues_in_use_stay(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_MAX_NUM_QUEUES", 1)
    model = make(max_batch_size=4, allowed_batch_sizes=(4,))
    run, held, entered = model._model.run, threading.Event(), threading.Event()

    def hold(feeds: Any, fetches: Any, *, timeout_ms: int = 0) -> list[np.ndarray]:
        if len(feeds[0][1]) == 4:
            entered.set()
            assert held.wait(60)
        return run(feeds, fetches, timeout_ms=timeout_ms)

    model._model.run = hold  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(echo, model, np.ones((1, 1)))
        assert entered.wait(60)
        assert echo(model, np.ones((2, 2))).tolist() == [[1.0, 1.0]] * 2
        held.set()
        assert first.result().tolist() == [[1.0]]
    assert model.recorded == [2, 4]


def test_rows_that_the_signature_does_not_have_need_no_queue(make: Make) -> None:
    """They get what the model alone says, be it an answer (the graph is not asked for its shapes) or an error."""
    model = make(max_batch_size=8, allowed_batch_sizes=(8,))
    one, three = np.ones(1, np.float32), np.array([[1, 2, 3]], np.int32)
    assert predict(model, "pair", {"a": one, "b": three})["sum"].tolist() == [7.0]
    with pytest.raises(RequestError, match="float") as caught:
        predict(model, "pair", {"a": np.array([b"x"], object), "b": three[:, :2]})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert model.recorded == [1, 1]
    assert not model._queues


def test_calls_of_other_time_limits_share_a_queue(make: Make) -> None:
    model = make(max_batch_size=4)
    for timeout_ms in (0, 60_000, 59_999, 60_001):
        options = CallOptions(timeout_ms=timeout_ms)
        (output,) = predict(model, "echo_float32", {"x": np.ones(1, np.float32)}, options).values()
        assert output.tolist() == [1.0]
    assert len(model._queues) == 1


def test_a_batch_whose_calls_all_waited_too_long_is_not_computed(make: Make) -> None:
    model = make(max_batch_size=4, batch_timeout_micros=300_000)
    with pytest.raises(
        RequestError, match=r"Run\(\) timeout exceeded while waiting in batching queue"
    ) as caught:
        predict(model, "echo_float32", {"x": np.ones(1, np.float32)}, CallOptions(timeout_ms=20))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert not model.recorded


def test_closing_ends_the_queues_threads(models_root: Path) -> None:
    def num_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def once() -> None:
        model = BatchedModel(
            SavedModel(models_root / "echo" / "7", SessionOptions()), BatchingParameters(num_batch_threads=4)
        )
        echo(model, [1.0])
        model.close()

    once()
    before = num_threads()
    for _ in range(5):
        once()
    assert num_threads() <= before


# ---- the parameters file ----


def test_parameters_file(tmp_path: Path) -> None:
    path = tmp_path / "batching.config"
    path.write_text(
        "max_batch_size { value: 32 }\nbatch_timeout_micros { value: 2000 }\nmax_enqueued_batches { value: "
        "100 }\n"
        "num_batch_threads { value: 4 }\nallowed_batch_sizes: 8\nallowed_batch_sizes: 32\n"
        "thread_pool_name { value: 'pool' }\npad_variable_length_inputs: true\n"
    )
    assert read_parameters(path, num_cpus=2) == BatchingParameters(
        max_batch_size=32,
        batch_timeout_micros=2000,
        max_enqueued_batches=100,
        num_batch_threads=4,
        allowed_batch_sizes=(8, 32),
        pad_variable_length_inputs=True,
    )
    assert read_parameters(None, num_cpus=3) == BatchingParameters(num_batch_threads=3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_batch_size: 3", "Invalid protobuf file: "),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 2",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2",
            "allowed_batch_sizes must increase; got 4, 2",
        ),
    ],
)
def test_wrong_parameters_file(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "batching.config"
    path.write_text(text)
    with pytest.raises(ServingError, match=error):
        read_parameters(path, num_cpus=2)
