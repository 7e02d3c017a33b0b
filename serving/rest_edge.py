"""The REST wire: a raw ASGI application on uvicorn. Requests are answered in a thread pool, the loop only
moves bytes."""

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
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code, http_status

__all__ = ["RestEdge"]

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 2**31 - 1
# net_http/compression/gzip_zlib.h, kMaxUncompressedBytes.
_MAX_UNZIPPED_BYTES = 100 * 2**20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[routing.Route, bytes], bytes]
Headers = list[tuple[bytes, bytes]]

_JSON: Headers = [(b"content-type", b"application/json")]
_HTML: Headers = [(b"content-type", b"text/html")]
_CORS: Headers = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
# libevent's evhttp_send_error.
_NOT_FOUND_PAGE = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
)


class RestEdge:
    """An HTTP server whose port is bound at once.

    Raises:
        ServingError: the port is taken or the address unusable.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._socket = _bound_socket(config.host, config.rest_api_port)
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, answer: Answer) -> None:
        """Serve; returns when the socket accepts."""
        threads = self._config.rest_api_num_threads or max(4 * (os.cpu_count() or 1), 32)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        config = uvicorn.Config(
            _Application(answer, pool, cors=self._config.rest_api_enable_cors_support),
            http="auto",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(self._config.drain_seconds)),
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
    def __init__(self, answer: Answer, pool: ThreadPoolExecutor, *, cors: bool) -> None:
        self._answer = answer
        self._pool = pool
        self._headers = _JSON + _CORS if cors else _JSON
        self._cors = cors

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        method, path = scope["method"], _path_and_query(scope)
        if not routing.is_api_path(path):
            await _respond(send, 404, _NOT_FOUND_PAGE, _HTML)
            return
        try:
            body = await _read_body(scope, receive)
            if self._cors and method == "OPTIONS":
                content = b""
            else:
                route = routing.parse(method, path)
                loop = asyncio.get_running_loop()
                content = await loop.run_in_executor(self._pool, self._answer, route, body)
            await _respond(send, 200, content, self._headers)
        except RequestError as error:
            await self._respond_error(send, error)
        except _ClientGoneError:
            return
        except Exception:
            logger.exception("%s %s failed in a way that no request should", method, path)
            message = "internal error; the server's log has the details"
            await self._respond_error(send, RequestError(Code.INTERNAL, message))

    async def _respond_error(self, send: Send, error: RequestError) -> None:
        await _respond(send, http_status(error.code), json_response.error_body(error.message), self._headers)


def _path_and_query(scope: MutableMapping[str, Any]) -> str:
    """As sent. The original matches its URLs against path and query together: a query makes a request
    malformed."""
    path: bytes = scope["raw_path"].partition(b"?")[0]
    query: bytes = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


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
    return _unzipped(body) if b"gzip" in headers.get(b"content-encoding", b"") else body


def _unzipped(body: bytes) -> bytes:
    """The content of a gzip body; nothing for one that is broken or too long, as in the original."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(body, _MAX_UNZIPPED_BYTES)
    except zlib.error as error:
        logger.debug("a gzip body could not be read: %s", error)
        return b""
    return content if decompressor.eof else b""


async def _respond(send: Send, status: int, content: bytes, headers: Headers) -> None:
    length = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + length})
    await send({"type": "http.response.body", "body": content})
