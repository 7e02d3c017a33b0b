"""Requests of one signature run together, by TensorFlow's own C++ batch scheduler (the BatchFunction op).

Around a loaded model stands one small Session per kind of call (what is fed, of what row shape, and what is
fetched), shared by both wires whatever their time limits:

    placeholders -> BatchFunction[queue, timeout, padding, splitting in C++] -> a Python function ->
    SavedModel.run

The op lives in a Session of its own, so closing it frees the queue and its threads with the version; and that
Session has threads of its own, because the Python function blocks one of them while the model's Session
computes. Every row carries its call's number into the function, which so knows whom to tell of a failed
computation: an exception in the function would lose its code, and the outputs cannot say it, since a call that
was split has rows in several batches, and those of a failed one need not even have the others' rank.

With pad_variable_length_inputs, which the op cannot do, only each row's place (call, row) goes through it: the values
wait in the call until their batch is known, and are padded to one another there.
"""

import itertools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.serving import batch_padding
from isthmus.serving.batching_parameters import BatchingParameters
from isthmus.serving.errors import RequestError
from isthmus.serving.metrics import Metrics
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, NUMPY_OF_DTYPE, dtype_number

__all__ = ["BatchedModel"]

Array = np.ndarray[Any, Any]
Feeds = Sequence[tuple[str, Array]]

# A queue belongs to one row shape; for one more than this, the one that was not used for longest goes.
_MAX_NUM_QUEUES = 64
_queue_names = itertools.count()
_call_numbers = itertools.count()


@dataclass
class _Call:
    """One request on its way through a queue."""

    timeout_ms: int
    """Its time limit. 0: none."""

    started: float
    """When it came, by time.perf_counter."""

    values: Sequence[Array]
    """What it feeds, in the queue's order."""

    error: RequestError | None = None
    """Why one of the batches that hold its rows failed: the first one, as in the original."""


@dataclass
class _Queue:
    """The Session around one BatchFunction, and the callable that goes through it."""

    session: Any
    run: Any
    calls: dict[int, _Call]
    """Those under way, by the number that their rows carry."""

    num_users: int = 0
    """Requests that hold it; changed under the model's lock."""


class BatchedModel:
    """A `LoadedModel` whose calls are gathered into batches. Calls may come from any number of threads."""

    def __init__(
        self, model: LoadedModel, parameters: BatchingParameters, metrics: Metrics | None = None
    ) -> None:
        self._metrics = metrics or Metrics()
        self.path = model.path
        self.signatures = model.signatures
        self._model = model
        self.parameters = parameters
        self._declared = _declared_inputs(model.signatures)
        # The one used last comes last.
        self._queues: OrderedDict[Any, _Queue] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def run(self, feeds: Feeds, fetches: Sequence[str], *, timeout_ms: int = 0) -> list[Array]:
        """`SavedModel.run`, together with other requests.

        Raises:
            RequestError: also INVALID_ARGUMENT without inputs, for inputs without rows, of different numbers
                of rows, or with more rows than max_batch_size; UNAVAILABLE when the queue is full.
        """
        _check_rows(feeds)
        feeds, fetched = sorted(feeds, key=_name), tuple(sorted(set(fetches)))
        queue = self._acquired(feeds, fetched)
        if queue is None:
            return self._model.run(feeds, fetches, timeout_ms=timeout_ms)
        try:
            by_name = dict(zip(fetched, self._through(queue, feeds, timeout_ms), strict=True))
        finally:
            with self._lock:
                queue.num_users -= 1
        return [by_name[name] for name in fetches]

    def _through(self, queue: _Queue, feeds: Feeds, timeout_ms: int) -> list[Array]:
        from tensorflow.errors import OpError

        metrics, path, started = self._metrics, str(self.path), time.perf_counter()
        num_rows = feeds[0][1].shape[0]
        sent = [value for _, value in feeds]
        number, call = next(_call_numbers), _Call(timeout_ms, started, sent)
        queue.calls[number] = call
        metrics.batching_input(model_path=path, num_rows=num_rows)
        metrics.batching_waiting(model_path=path, change=1)
        try:
            through = [np.arange(num_rows)] if self.parameters.pad_variable_length_inputs else sent
            values: list[Array] = queue.run(np.full(num_rows, number), *through)
        except OpError as error:
            # After a failed computation it only says that the call's parts do not fit together.
            if call.error is None:
                raise RequestError(Code(error.error_code), error.message.split("\n\t [[")[0]) from error
        finally:
            del queue.calls[number]
            metrics.batching_waiting(model_path=path, change=-1)
            metrics.batching_delay(model_path=path, duration_us=(time.perf_counter() - started) * 1e6)
        if call.error is not None:
            # The error is shared by all calls of the batch: each raises one of its own.
            raise RequestError(call.error.code, call.error.message)
        return values

    def close(self) -> None:
        """Close the queues and the model; no call may be under way."""
        for queue in self._queues.values():
            queue.session.close()
        self._queues.clear()
        self._model.close()

    def _acquired(self, feeds: Feeds, fetches: tuple[str, ...]) -> _Queue | None:
        """The queue of this kind of call, not closed while its num_users counts the caller; None for what
        runs by itself: rows of no shape that the signature has (most fail, and need no queue for that), and
        a further kind while calls of _MAX_NUM_QUEUES others are under way."""
        is_padded = self.parameters.pad_variable_length_inputs
        kind = tuple(
            (name, dtype_number(value), (None,) * (value.ndim - 1) if is_padded else value.shape[1:])
            for name, value in feeds
        )
        if not fetches or not all(_fits(value, self._declared.get(name)) for name, value in feeds):
            return None
        key = (kind, fetches)
        queue = self._known(key)
        if queue is None:
            # Requests of known kinds do not wait for this.
            with self._making:
                queue = self._known(key)
                if queue is None and self._has_room():
                    queue = self._new_queue(kind, fetches)
                    queue.num_users = 1
                    with self._lock:
                        self._queues[key] = queue
        return queue

    def _known(self, key: Any) -> _Queue | None:
        with self._lock:
            queue = self._queues.get(key)
            if queue is not None:
                queue.num_users += 1
                self._queues.move_to_end(key)
            return queue

    def _has_room(self) -> bool:
        """Whether there may be one more queue; closes an idle one for it."""
        with self._lock:
            if len(self._queues) < _MAX_NUM_QUEUES:
                return True
            idle = next((key for key, queue in self._queues.items() if not queue.num_users), None)
            if idle is None:
                return False
            queue = self._queues.pop(idle)
        queue.session.close()
        return True

    def _new_queue(self, kind: Any, fetches: tuple[str, ...]) -> _Queue:
        import tensorflow as tf

        calls: dict[int, _Call] = {}
        names = [name for name, _, _ in kind]
        dtypes = [self._model.dtype(name) for name in fetches]
        is_padded = self.parameters.pad_variable_length_inputs

        def compute(numbers: Array, *values: Array) -> list[Array]:
            num_rows = len(numbers)
            self._metrics.batch(model_path=str(self.path), num_rows=num_rows)
            known = [calls.get(number) for number in np.unique(numbers).tolist()]
            here = [call for call in known if call is not None]
            try:
                fed = _rows_of(calls, numbers, *values) if is_padded else values
                feeds = list(zip(names, fed, strict=True))
                return self._model.run(feeds, fetches, timeout_ms=_remaining_ms(here))
            except RequestError as error:
                for call in here:
                    call.error = call.error or error
                return [_zeros(num_rows, dtype) for dtype in dtypes]

        graph = tf.Graph()
        with graph.as_default():
            places = tf.TensorSpec([None], tf.int64)
            rows = [tf.TensorSpec([None, *shape], tf.as_dtype(number)) for _, number, shape in kind]
            specs = [places, places] if is_padded else [places, *rows]
            placeholders = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
            outputs = self._batch_function(compute, specs, placeholders, [*map(tf.as_dtype, dtypes)])
        session = tf.compat.v1.Session(graph=graph, config=self._session_config())
        options = _callable_options(placeholders, outputs)
        return _Queue(session, session._make_callable_from_options(options), calls)

    def _batch_function(self, compute: Any, specs: Any, placeholders: Any, dtypes: Any) -> Any:
        import tensorflow as tf

        def body(*values: Any) -> Any:
            return tf.numpy_function(compute, values, dtypes)

        given = self.parameters
        return tf.raw_ops.BatchFunction(
            in_tensors=placeholders,
            captured_tensors=[],
            f=tf.function(body, autograph=False).get_concrete_function(*specs),
            num_batch_threads=given.num_batch_threads,
            max_batch_size=given.max_batch_size,
            batch_timeout_micros=given.batch_timeout_micros,
            max_enqueued_batches=given.max_enqueued_batches,
            allowed_batch_sizes=_sizes(given),
            enable_large_batch_splitting=given.enable_large_batch_splitting,
            Tout=dtypes,
            # The scheduler is looked up by this name, in every Session.
            shared_name=f"isthmus_{next(_queue_names)}",
        )

    def _session_config(self) -> Any:
        import tensorflow as tf

        return tf.compat.v1.ConfigProto(
            use_per_session_threads=True,
            inter_op_parallelism_threads=self.parameters.num_batch_threads + 1,
            intra_op_parallelism_threads=1,
            device_count={"GPU": 0},
        )

    def dtype(self, name: str) -> int:
        """The tensorflow.DataType of a tensor of the graph."""
        return self._model.dtype(name)


def _rows_of(calls: Mapping[int, _Call], numbers: Array, rows: Array) -> list[Array]:
    """What the rows of a batch feed, input by input: row rows[i] of calls[numbers[i]], padded.

    Raises:
        RequestError: as `batch_padding.concatenated`.
    """
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    parts = [
        [value[rows[start:end]] for value in calls[int(numbers[start])].values]
        for start, end in itertools.pairwise(borders)
    ]
    return [batch_padding.concatenated(column) for column in zip(*parts, strict=True)]


def _sizes(given: BatchingParameters) -> list[int]:
    """The op takes the last allowed size for the limit of a computation: without sizes to pad to, all up to
    it."""
    if given.allowed_batch_sizes or not given.enable_large_batch_splitting:
        return list(given.allowed_batch_sizes)
    return list(range(1, (given.max_execution_batch_size or given.max_batch_size) + 1))


def _callable_options(placeholders: Any, outputs: Any) -> Any:
    from tensorflow.core.protobuf import config_pb2

    return config_pb2.CallableOptions(
        feed=[tensor.name for tensor in placeholders], fetch=[tensor.name for tensor in outputs]
    )


def _remaining_ms(calls: Sequence[_Call]) -> int:
    """How long a batch may compute: the most that one of its calls has left, as in the original. 0: no limit.

    Raises:
        RequestError: RESOURCE_EXHAUSTED when they have all waited too long.
    """
    if not all(call.timeout_ms for call in calls) or not calls:
        return 0
    now = time.perf_counter()
    left = max(call.timeout_ms - (now - call.started) * 1e3 for call in calls)
    if left <= 0:
        raise RequestError(Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
    return math.ceil(left)


def _declared_inputs(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """tensorflow.TensorInfo by tensor name."""
    return {info.name: info for signature in signatures.values() for info in signature.inputs.values()}


def _fits(value: Array, info: Any) -> bool:
    """Whether an array has the type that a TensorInfo declares, and its rows the shape."""
    if info is None:
        return True
    if dtype_number(value) != info.dtype:
        return False
    if info.tensor_shape.unknown_rank:
        return True
    declared = [dim.size for dim in info.tensor_shape.dim]
    return len(declared) == value.ndim and all(
        wanted in (-1, size) for wanted, size in zip(declared[1:], value.shape[1:], strict=True)
    )


def _name(feed: tuple[str, Array]) -> str:
    return feed[0]


def _check_rows(feeds: Feeds) -> None:
    """BatchingSession's own checks and texts."""
    if not feeds:
        raise RequestError(Code.INVALID_ARGUMENT, "Batching Run() must have at least one input tensor")
    sizes = []
    for _, value in feeds:
        if not value.ndim:
            raise RequestError(
                Code.INVALID_ARGUMENT, "Batching Run() input tensors must have at least one dimension"
            )
        sizes.append(value.shape[0])
    if len(set(sizes)) > 1:
        raise RequestError(
            Code.INVALID_ARGUMENT, "Batching Run() input tensors must have equal 0th-dimension size"
        )


def _zeros(num_rows: int, dtype: int) -> Array:
    return np.full(num_rows, b"", object) if dtype == DT_STRING else np.zeros(num_rows, NUMPY_OF_DTYPE[dtype])
