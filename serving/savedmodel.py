"""The executable core: one SavedModel in a TensorFlow Session, the loader and runtime that TensorFlow Serving
uses.

Why a Session and not `tf.saved_model.load`: TensorFlow Serving loads the MetaGraphDef into a Session, so what
loads and answers here loads and answers there (a model that only the object loader accepts must fail its
blessing); it takes TF1 and TF2 models alike, feeds and fetches by the signature's tensor names, and computes
only the outputs asked for. And it is cheaper than a signature's ConcreteFunction. Grappler and oneDNN are on
in both, by TensorFlow's defaults.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isthmus.serving.c_session import CSession

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
        from tensorflow.core.protobuf import config_pb2

        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=options.intra_op_threads,
            inter_op_parallelism_threads=options.inter_op_threads,
            use_per_session_threads=bool(options.intra_op_threads or options.inter_op_threads),
            allow_soft_placement=True,
        )
        config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
        self.path = path
        self._session = CSession(path, tags=options.tags, config=config.SerializeToString())
        self.signatures: dict[str, Any] = dict(self._session.meta_graph.signature_def)

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
        unique = tuple(dict.fromkeys(fetches))
        by_name = dict(zip(unique, self._session.run(feeds, unique, timeout_ms=timeout_ms), strict=True))
        return [by_name[name] for name in fetches]

    def dtype(self, name: str) -> int:
        """The tensorflow.DataType of a tensor of the graph."""
        return self._session.dtype(name)

    def close(self) -> None:
        """Give the model's memory back, to the operating system as well; no call may be under way."""
        self._session.close()
        _release_freed_memory()


def _release_freed_memory() -> None:
    """glibc keeps freed memory in its arenas; a server that swaps models must hand it back."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # musl has no arenas and no malloc_trim
        return
