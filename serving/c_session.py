"""TensorFlow's C API, through ctypes: the C++ loader of SavedModels, which Python's bindings leave out, and the session
that it gives.

It is the loader that TensorFlow Serving calls. Python's own parses the graph, imports it and restores the variables
under the interpreter's lock: with resnet50, other requests stood still for a quarter of a second while a new version
was loaded, and the process kept a second graph. Every call here runs without that lock.

Strings and numbers are handed over without a copy of numpy's memory where TensorFlow takes it (aligned, contiguous);
it says through a callback when it has let go.
"""

import ctypes
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, DTYPE_NAMES, NUMPY_OF_DTYPE, dtype_number

__all__ = ["CSession"]

_LIBRARY = "libtensorflow_cc.so.2"
_STRING_BYTES = 24
"""sizeof(TF_TString)."""
_GRAPH_FIELD = 2
"""tensorflow.MetaGraphDef.graph_def."""
_QUANTIZED = {11: np.int8, 12: np.uint8, 13: np.int32, 15: np.int16, 16: np.uint16}

_Pointer = ctypes.c_void_p
_Deallocator = ctypes.CFUNCTYPE(None, _Pointer, ctypes.c_size_t, _Pointer)


class _Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", _Pointer), ("length", ctypes.c_size_t), ("deallocator", _Pointer))


class _Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = (("operation", _Pointer), ("index", ctypes.c_int))


# name: (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (_Pointer, ()),
    "TF_DeleteStatus": (None, (_Pointer,)),
    "TF_GetCode": (ctypes.c_int, (_Pointer,)),
    "TF_Message": (ctypes.c_char_p, (_Pointer,)),
    "TF_NewSessionOptions": (_Pointer, ()),
    "TF_SetConfig": (None, (_Pointer, ctypes.c_char_p, ctypes.c_size_t, _Pointer)),
    "TF_DeleteSessionOptions": (None, (_Pointer,)),
    "TF_NewGraph": (_Pointer, ()),
    "TF_DeleteGraph": (None, (_Pointer,)),
    "TF_LoadSessionFromSavedModel": (
        _Pointer,
        (
            *(_Pointer, _Pointer, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, _Pointer),
            *(ctypes.POINTER(_Buffer), _Pointer),
        ),
    ),
    "TF_ExtendSession": (None, (_Pointer, _Pointer)),
    "TF_CloseSession": (None, (_Pointer, _Pointer)),
    "TF_DeleteSession": (None, (_Pointer, _Pointer)),
    "TF_GraphOperationByName": (_Pointer, (_Pointer, ctypes.c_char_p)),
    "TF_OperationNumOutputs": (ctypes.c_int, (_Pointer,)),
    "TF_OperationOutputType": (ctypes.c_int, (_Output,)),
    "TF_SessionRun": (
        None,
        (
            *(_Pointer, ctypes.POINTER(_Buffer)),
            *(ctypes.POINTER(_Output), ctypes.POINTER(_Pointer), ctypes.c_int),
            *(ctypes.POINTER(_Output), ctypes.POINTER(_Pointer), ctypes.c_int),
            *(_Pointer, ctypes.c_int, _Pointer, _Pointer),
        ),
    ),
    "TF_NewTensor": (
        _Pointer,
        (
            *(ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_int),
            *(_Pointer, ctypes.c_size_t, _Deallocator, _Pointer),
        ),
    ),
    "TF_DeleteTensor": (None, (_Pointer,)),
    "TF_TensorType": (ctypes.c_int, (_Pointer,)),
    "TF_NumDims": (ctypes.c_int, (_Pointer,)),
    "TF_Dim": (ctypes.c_int64, (_Pointer, ctypes.c_int)),
    "TF_TensorData": (_Pointer, (_Pointer,)),
    "TF_TensorByteSize": (ctypes.c_size_t, (_Pointer,)),
    "TF_StringInit": (None, (_Pointer,)),
    "TF_StringCopy": (None, (_Pointer, ctypes.c_char_p, ctypes.c_size_t)),
    "TF_StringDealloc": (None, (_Pointer,)),
    "TF_StringGetSize": (ctypes.c_size_t, (_Pointer,)),
    "TF_StringGetDataPointer": (_Pointer, (_Pointer,)),
}


@functools.cache
def _tf() -> Any:
    """The library that `import tensorflow` has loaded, its functions typed."""
    import tensorflow as tf

    library = ctypes.CDLL(str(Path(tf.__file__).parent / _LIBRARY))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class CSession:
    """A session made by `LoadSavedModel`. Calls may come from any number of threads.

    Attributes:
        meta_graph: tensorflow.MetaGraphDef without its graph.

    Raises:
        RequestError: the folder holds no loadable SavedModel; TensorFlow's own code and text.
    """

    def __init__(self, path: Path, *, tags: Sequence[str], config: bytes) -> None:
        """`config` is a serialized tensorflow.ConfigProto."""
        tf = _tf()
        self._session: int | None = None
        self._graph = tf.TF_NewGraph()
        self._places: dict[str, tuple[_Output, int]] = {}
        self._run_options: dict[int, Any] = {}
        options = tf.TF_NewSessionOptions()
        told = _Buffer()
        try:
            with _Status() as status:
                tf.TF_SetConfig(options, config, len(config), status.pointer)
                status.check()
                self._session = tf.TF_LoadSessionFromSavedModel(
                    options,
                    None,
                    str(path).encode(),
                    (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags)),
                    len(tags),
                    self._graph,
                    told,
                    status.pointer,
                )
                status.check()
                # Otherwise each call would compare the graph with the session's.
                tf.TF_ExtendSession(self._session, status.pointer)
                status.check()
            self.meta_graph = _meta_graph(told)
        except BaseException:
            self.close()
            raise
        finally:
            tf.TF_DeleteSessionOptions(options)
            if told.deallocator:
                ctypes.CFUNCTYPE(None, _Pointer, ctypes.c_size_t)(told.deallocator)(told.data, told.length)

    def dtype(self, name: str) -> int:
        """The tensorflow.DataType of a tensor of the graph.

        Raises:
            RequestError: NOT_FOUND, the graph has no such tensor.
        """
        return self._place(name)[1]

    def run(
        self, feeds: Sequence[tuple[str, npt.NDArray[Any]]], fetches: Sequence[str], *, timeout_ms: int = 0
    ) -> list[npt.NDArray[Any]]:
        """Session::Run: fetch tensors by name; an array of strings is one of bytes objects.

        Raises:
            RequestError: with TensorFlow's own code and text.
        """
        tf = _tf()
        inputs = (_Output * len(feeds))(*(self._place(name)[0] for name, _ in feeds))
        outputs = (_Output * len(fetches))(*(self._place(name)[0] for name in fetches))
        given, answers = (_Pointer * len(feeds))(), (_Pointer * len(fetches))()
        try:
            for position, (_, value) in enumerate(feeds):
                given[position] = _tensor(value)
            with _Status() as status:
                tf.TF_SessionRun(
                    *(self._session, self._options(timeout_ms)),
                    *(inputs, given, len(feeds)),
                    *(outputs, answers, len(fetches)),
                    *(None, 0, None, status.pointer),
                )
                status.check()
            return [_array(pointer) for pointer in answers if pointer]
        finally:
            for pointer in (*given, *answers):
                if pointer:
                    tf.TF_DeleteTensor(pointer)

    def close(self) -> None:
        """Give the memory back; no call may be under way. A second call does nothing."""
        tf = _tf()
        if self._session is not None:
            with _Status() as status:
                tf.TF_CloseSession(self._session, status.pointer)
                tf.TF_DeleteSession(self._session, status.pointer)
            self._session = None
        if self._graph is not None:
            tf.TF_DeleteGraph(self._graph)
            self._graph = None

    def _place(self, name: str) -> tuple[_Output, int]:
        """(where a tensor of this name is, its type)."""
        known = self._places.get(name)
        if known is not None:
            return known
        operation, _, index = name.partition(":")
        number = int(index) if index.isdecimal() else 0
        pointer = _tf().TF_GraphOperationByName(self._graph, operation.encode())
        if not pointer or number >= _tf().TF_OperationNumOutputs(pointer):
            raise RequestError(
                Code.NOT_FOUND,
                f"Tensor {name}, specified in either feed_devices or fetch_devices was "
                "not found in the Graph",
            )
        place = _Output(pointer, number)
        self._places[name] = place, _tf().TF_OperationOutputType(place)
        return self._places[name]

    def _options(self, timeout_ms: int) -> Any:
        """tensorflow.RunOptions, serialized, or None. One is kept for each value of three digits: a limit may be a
        hundredth late."""
        if not timeout_ms:
            return None
        step = 10 ** max(len(str(timeout_ms)) - 3, 0)
        timeout_ms = -(-timeout_ms // step) * step
        if timeout_ms not in self._run_options:
            from tensorflow.core.protobuf import config_pb2

            text = config_pb2.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
            kept = ctypes.create_string_buffer(text, len(text))
            buffer = _Buffer(ctypes.cast(kept, _Pointer), len(text), None)
            self._run_options[timeout_ms] = (ctypes.pointer(buffer), kept)
        return self._run_options[timeout_ms][0]


class _Status:
    """TF_Status, deleted at the end of the block."""

    def __enter__(self) -> "_Status":
        self.pointer = _tf().TF_NewStatus()
        return self

    def __exit__(self, *_: object) -> None:
        _tf().TF_DeleteStatus(self.pointer)

    def check(self) -> None:
        """Raises RequestError for anything but OK."""
        code = _tf().TF_GetCode(self.pointer)
        if code:
            raise RequestError(Code(code), _tf().TF_Message(self.pointer).decode(errors="replace"))


def _meta_graph(told: _Buffer) -> Any:
    """The message without its graph, whose weights would be parsed under the interpreter's lock."""
    from tensorflow.core.protobuf import meta_graph_pb2

    # No copy of it either.
    view = memoryview((ctypes.c_ubyte * told.length).from_address(told.data)).cast("B")
    kept, position = bytearray(), 0
    while position < len(view):
        start = position
        tag, position = _varint(view, position)
        length, position = _varint(view, position)
        # Every field of a MetaGraphDef is a message or a string: tag, length, content.
        assert tag & 7 == 2, "a MetaGraphDef that this version of TensorFlow does not write"
        position += length
        if tag >> 3 != _GRAPH_FIELD:
            kept += view[start:position]
    return meta_graph_pb2.MetaGraphDef.FromString(bytes(kept))


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """(the number that is written there, where it ends)."""
    value = 0
    for shift in itertools.count(step=7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise AssertionError("counts for ever")


#: What TensorFlow reads until it calls `_let_go`: number -> (numpy's memory, how many strings it holds).
_lent: dict[int, tuple[npt.NDArray[Any], int]] = {}
_numbers = itertools.count(1)


@_Deallocator
def _let_go(data: int | None, _length: int, number: int | None) -> None:
    """Called by whichever thread of TensorFlow's drops the last reference."""
    memory, num_strings = _lent.pop(number or 0)
    for position in range(num_strings):
        _tf().TF_StringDealloc((data or 0) + _STRING_BYTES * position)
    del memory


def _tensor(value: npt.NDArray[Any]) -> int:
    """A TF_Tensor over an array."""
    dtype, dims, num_strings = dtype_number(value), value.shape, 0
    if dtype == DT_STRING:
        memory, num_strings = _strings(value), value.size
    else:
        memory = np.ascontiguousarray(value)
    number = next(_numbers)
    _lent[number] = memory, num_strings
    pointer: int = _tf().TF_NewTensor(
        *(dtype, (ctypes.c_int64 * len(dims))(*dims), len(dims)),
        *(memory.ctypes.data, memory.nbytes, _let_go, number),
    )
    return pointer


def _strings(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """uint64 [n, 3]: an array of TF_TString, which own their bytes."""
    tf = _tf()
    memory = np.zeros((value.size, _STRING_BYTES // 8), np.uint64)
    place = memory.ctypes.data
    for position, text in enumerate(value.ravel().tolist()):
        content = text.encode() if isinstance(text, str) else text
        if not isinstance(content, bytes):
            raise RequestError(
                Code.INVALID_ARGUMENT, f"a tensor of strings holds bytes or text, not {type(text).__name__}"
            )
        tf.TF_StringInit(place + _STRING_BYTES * position)
        tf.TF_StringCopy(place + _STRING_BYTES * position, content, len(content))
    return memory


def _array(tensor: int) -> npt.NDArray[Any]:
    """A copy of a TF_Tensor's values."""
    tf = _tf()
    dtype = tf.TF_TensorType(tensor)
    shape = tuple(tf.TF_Dim(tensor, axis) for axis in range(tf.TF_NumDims(tensor)))
    data = tf.TF_TensorData(tensor)
    if dtype == DT_STRING:
        values = np.empty(math.prod(shape), object)
        values[:] = [_string(data + _STRING_BYTES * position) for position in range(values.size)]
        return values.reshape(shape)
    numpy_dtype = NUMPY_OF_DTYPE.get(dtype) or (_QUANTIZED.get(dtype) and np.dtype(_QUANTIZED[dtype]))
    if numpy_dtype is None:
        raise RequestError(
            Code.UNIMPLEMENTED, f"tensors of type {DTYPE_NAMES.get(dtype, dtype)} cannot be fetched"
        )
    array = np.empty(shape, numpy_dtype)
    assert array.nbytes == tf.TF_TensorByteSize(tensor)
    ctypes.memmove(array.ctypes.data, data, array.nbytes)
    return array


def _string(place: int) -> bytes:
    """The bytes of a TF_TString."""
    first = ctypes.c_uint8.from_address(place).value
    if first & 3 == 0:
        # A short one lies in the structure itself; that costs half of two calls, and labels are many.
        return ctypes.string_at(place + 1, first >> 2)
    tf = _tf()
    return ctypes.string_at(tf.TF_StringGetDataPointer(place), tf.TF_StringGetSize(place))
