"""The executable core: one SavedModel in a TensorFlow Session, the loader and runtime that TensorFlow Serving
uses.

Why a Session and not `tf.saved_model.load`: TensorFlow Serving loads the MetaGraphDef into a Session, so what
loads and answers here loads and answers there (a model that only the object loader accepts must fail its
blessing); it takes TF1 and TF2 models alike, feeds and fetches by the signature's tensor names, and computes
only the outputs asked for. And it is cheaper: a call through a Session callable costs 30 µs of CPU over the
computation, through a signature's ConcreteFunction 190 µs. Grappler and oneDNN are on in both, by
TensorFlow's defaults.
"""

import ctypes
import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code
from isthmus.serving.tensors import DTYPE_NAMES, dtype_number

__all__ = ["LoadedModel", "SavedModel", "SessionOptions", "is_complete"]

DEFAULT_SIGNATURE = "serving_default"
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")


class LoadedModel(Protocol):
    """What requests run on: a `SavedModel`, or one behind a batching queue."""

    path: Path
    signatures: dict[str, Any]

    def run(
        self,
        feeds: Sequence[tuple[str, np.ndarray[Any, Any]]],
        fetches: Sequence[str],
        *,
        timeout_ms: int = 0,
    ) -> list[np.ndarray[Any, Any]]:
        """Fetch tensors by name; see `SavedModel.run`."""
        ...

    def dtype(self, name: str) -> int:
        """The tensorflow.DataType of a tensor of the graph."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What TensorFlow is told when a model is loaded."""

    tags: tuple[str, ...] = ("serve",)
    """Tags of the MetaGraphDef to load."""

    intra_op_threads: int = 0
    """Threads within one operation. 0: TensorFlow's choice."""

    inter_op_threads: int = 0
    """Operations of one call in parallel. 0: TensorFlow's choice."""

    gpu_memory_fraction: float = 0.0
    """Share of the GPU's memory. 0: TensorFlow's choice."""


def is_complete(folder: Path) -> bool:
    """Whether a version folder holds its graph: the file that every exporter and pusher writes last."""
    return any((folder / name).is_file() for name in _GRAPH_FILES)


class SavedModel:
    """One loaded SavedModel. Calls may come from any number of threads.

    Attributes:
        signatures: the MetaGraphDef's signature_def map (tensorflow.SignatureDef by name).

    Raises:
        RequestError: the folder holds no loadable SavedModel; carries TensorFlow's own text.
    """

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        session_config = v1.ConfigProto(
            intra_op_parallelism_threads=options.intra_op_threads,
            inter_op_parallelism_threads=options.inter_op_threads,
            use_per_session_threads=bool(options.intra_op_threads or options.inter_op_threads),
            allow_soft_placement=True,
        )
        session_config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
        if not is_complete(path):
            raise RequestError(
                Code.NOT_FOUND,
                f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}",
            )
        self.path = path
        self._graph = tf.Graph()
        self._session = v1.Session(graph=self._graph, config=session_config)
        try:
            meta_graph = _load(self._session, self._graph, path, options.tags)
        except BaseException:
            self.close()
            raise
        self.signatures: dict[str, Any] = dict(meta_graph.signature_def)
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...], int], _Callable] = {}
        self._lock = threading.Lock()

    def run(
        self,
        feeds: Sequence[tuple[str, np.ndarray[Any, Any]]],
        fetches: Sequence[str],
        *,
        timeout_ms: int = 0,
    ) -> list[np.ndarray[Any, Any]]:
        """Fetch tensors by name.

        Args:
            feeds: (tensor name, value) pairs.
            fetches: tensor names.
            timeout_ms: stop with DEADLINE_EXCEEDED after this long. 0: never.

        Raises:
            RequestError: with TensorFlow's own code and text.
        """
        from tensorflow.errors import OpError

        names = tuple(name for name, _ in feeds)
        unique = tuple(dict.fromkeys(fetches))
        try:
            call = self._callable(names, unique, timeout_ms)
            call.check_dtypes(feeds)
            values = call.run(*(value for _, value in feeds))
        except OpError as error:
            raise RequestError(Code(error.error_code), error.message) from error
        by_name = dict(zip(unique, values, strict=True))
        return [np.asarray(by_name[name]) for name in fetches]

    def dtype(self, name: str) -> int:
        """The tensorflow.DataType of a tensor of the graph."""
        number: int = self._graph.get_tensor_by_name(name).dtype.as_datatype_enum
        return number

    def close(self) -> None:
        """Give the model's memory back, to the operating system as well; no call may be under way."""
        self._session.close()
        self._callables = {}
        del self._session, self._graph
        gc.collect()
        _release_freed_memory()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...], timeout_ms: int) -> "_Callable":
        key = (feeds, fetches, timeout_ms)
        known = self._callables.get(key)
        if known is not None:
            return known
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        options.run_options.timeout_in_ms = timeout_ms
        with self._lock:
            if key not in self._callables:
                # Private, but what Keras stood on for years, and 110 µs cheaper than the public
                # make_callable.
                run = self._session._make_callable_from_options(options)
                dtypes = [self.dtype(name) for name in feeds]
                self._callables[key] = _Callable(run, dtypes)
        return self._callables[key]


@dataclass(frozen=True)
class _Callable:
    """A Session callable, and the tensorflow.DataType of each of its feeds."""

    run: Callable[..., list[Any]]
    dtypes: Sequence[int]

    def check_dtypes(self, feeds: Sequence[tuple[str, np.ndarray[Any, Any]]]) -> None:
        """Session::Run's own check and text; a callable's is worded otherwise."""
        for (name, value), wanted in zip(feeds, self.dtypes, strict=True):
            number = dtype_number(value)
            if number != wanted:
                index = sorted(feed for feed, _ in feeds).index(name)
                raise RequestError(
                    Code.INVALID_ARGUMENT,
                    f"Expects arg[{index}] to be {DTYPE_NAMES[wanted]} but {DTYPE_NAMES[number]} is provided",
                )


def _load(session: Any, graph: Any, path: Path, tags: tuple[str, ...]) -> Any:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        with graph.as_default():
            return tf.compat.v1.saved_model.loader.load(session, list(tags), str(path))
    except tf.errors.OpError as error:
        raise RequestError(Code(error.error_code), error.message) from error
    except (RuntimeError, ValueError, OSError, DecodeError, KeyError, TypeError) as error:
        if "could not be found in SavedModel" in str(error):
            raise RequestError(
                Code.NOT_FOUND,
                f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect "
                "available "
                "tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`",
            ) from error
        raise RequestError(
            Code.INVALID_ARGUMENT, f"Could not load the SavedModel at {path}: {error}"
        ) from error


def _release_freed_memory() -> None:
    """glibc keeps freed memory in its arenas; a server that swaps models must hand it back."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # musl has no arenas and no malloc_trim
        return
