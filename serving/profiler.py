"""tensorflow.ProfilerService, as tensorflow_model_server has it beside its API: what TensorBoard's "capture
profile" and `tf.profiler.experimental.client.trace` call.

A profile is an XSpace. It comes back in the answer when the client asks for that (emit_xspace); otherwise it is
written where the client says, on this machine. Because of that, and because a profile slows everything down,
only those may ask who may send ReloadConfig requests.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.serving.errors import RequestError
from isthmus.serving.private_messages import message_class
from isthmus.serving.status import Code

__all__ = ["SERVICE", "methods"]

SERVICE = "tensorflow.ProfilerService"
_MAX_DURATION_MS = 60_000
_NAME = re.compile(r"[\w.:@-]+")
_OPTIONS = ("host_tracer_level", "device_tracer_level", "python_tracer_level")


class _Profiler:
    """One profile at a time: TensorFlow has one profiler in a process."""

    def __init__(self) -> None:
        self._running = threading.Lock()
        self._terminate = threading.Event()

    def profile(self, request: Any) -> Any:
        """Trace for as long as was asked."""
        if not self._running.acquire(blocking=False):
            raise RequestError(Code.ALREADY_EXISTS, "Another profiling session is running.")
        try:
            self._terminate.clear()
            space = self._trace(request)
        finally:
            self._running.release()
        response = message_class("tensorflow.ProfileResponse")(empty_trace=not space)
        if request.emit_xspace:
            response.xspace = space
        elif space:
            _save(request, space)
        return response

    def terminate(self, _request: Any) -> Any:
        """End the profile that is under way."""
        self._terminate.set()
        return message_class("tensorflow.TerminateResponse")()

    def _trace(self, request: Any) -> bytes:
        from tensorflow.python.profiler.internal import _pywrap_profiler

        session = _pywrap_profiler.ProfilerSession()
        given = {name: getattr(request.opts, name) for name in _OPTIONS}
        session.start("", {name: level for name, level in given.items() if level})
        self._terminate.wait(min(request.duration_ms or request.opts.duration_ms, _MAX_DURATION_MS) / 1e3)
        space: bytes = session.stop()
        return space


def _save(request: Any, space: bytes) -> None:
    if not _NAME.fullmatch(request.session_id) or not _NAME.fullmatch(request.host_name):
        raise RequestError(Code.INVALID_ARGUMENT, "session_id and host_name must be plain names")
    folder = Path(request.repository_root)
    if not folder.is_absolute() or ".." in (*folder.parts, request.session_id):
        raise RequestError(Code.INVALID_ARGUMENT, "repository_root must be an absolute path")
    try:
        (folder / request.session_id).mkdir(parents=True, exist_ok=True)
        (folder / request.session_id / f"{request.host_name}.xplane.pb").write_bytes(space)
    except OSError as error:
        raise RequestError(Code.INTERNAL, f"cannot write the profile: {error.strerror}") from error


def methods() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """The request's class and the call of each method of a new profiler service."""
    profiler = _Profiler()
    calls = {"Profile": profiler.profile, "Terminate": profiler.terminate}
    return {name: (message_class(f"tensorflow.{name}Request"), call) for name, call in calls.items()}
