"""The REST wire: a raw ASGI application on uvicorn. Requests are answered in a thread pool, the loop only moves bytes."""

import asyncio
import logging
import os
import socket
import threading
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from isthmus.serving import json_response, routing
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code, http_status

__all__ = ["RestEdge"]

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 2**31 - 1

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[routing.Route, bytes], bytes]


class RestEdge:
    """An HTTP server whose port is bound at once.

    Raises:
        ServingError: the port is taken or the address unusable.
    """

    def __init__(self, *, host: str, port: int, num_threads: int, drain_seconds: float) -> None:
        self._socket = _bound_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._num_threads = num_threads or 4 * (os.cpu_count() or 1)
        self._drain_seconds = drain_seconds
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, answer: Answer) -> None:
        """Serve; returns when the socket accepts."""
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="rest")
        config = uvicorn.Config(
            _Application(answer, pool),
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(self._drain_seconds)),
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="rest", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServingError("the REST server did not start; its log has the reason")
            threading.Event().wait(0.01)

    def stop(self) -> None:
        """Close the socket, finish what is in flight."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process decides when it ends."""

    def install_signal_handlers(self) -> None:
        return


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServingError(
            f"cannot listen on {host}:{port} for REST: {error.strerror or error}; "
            "choose another with --rest_api_port and --host"
        ) from error
    return listener


class _Application:
    def __init__(self, answer: Answer, pool: ThreadPoolExecutor) -> None:
        self._answer = answer
        self._pool = pool

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path = scope["raw_path"].decode("latin-1")
        if not routing.is_api_path(path):
            await _respond(send, 404, b"", b"text/html; charset=UTF-8")
            return
        try:
            body = await _read_body(scope, receive)
            route = routing.parse(scope["method"], path)
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(self._pool, self._answer, route, body)
            await _respond(send, 200, content)
        except RequestError as error:
            await _respond(send, http_status(error.code), json_response.error_body(error.message))
        except _ClientGoneError:
            return
        except Exception:
            logger.exception("%s %s failed in a way that no request should", scope["method"], path)
            message = "internal error; the server's log has the details"
            await _respond(send, 500, json_response.error_body(message))


class _ClientGoneError(Exception):
    """The connection was closed before the body was complete."""


async def _read_body(scope: MutableMapping[str, Any], receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
            raise RequestError(Code.RESOURCE_EXHAUSTED, f"the body exceeds {_MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
        if not message.get("more_body"):
            break
    body = b"".join(chunks)
    headers = dict(scope["headers"])
    return _unzipped(body) if headers.get(b"content-encoding", b"").lower() == b"gzip" else body


def _unzipped(body: bytes) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(body, _MAX_BODY_BYTES)
    except zlib.error as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"Failed to decompress the gzip body: {error}") from error
    if not decompressor.eof:
        raise RequestError(
            Code.INVALID_ARGUMENT, "Failed to decompress the gzip body: it is truncated or too long"
        )
    return content


async def _respond(
    send: Send, status: int, content: bytes, content_type: bytes = b"application/json"
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
