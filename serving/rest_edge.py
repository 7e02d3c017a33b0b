"""The REST wire: a raw ASGI application on uvicorn. Requests are answered in a thread pool, the loop only
moves bytes."""

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from isthmus.serving import json_response, routing
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.http_server import Headers, HttpServer, Receive, Send, respond
from isthmus.serving.metrics import CONTENT_TYPE, Metrics
from isthmus.serving.status import Code, http_status

__all__ = ["RestEdge"]

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 2**31 - 1
# net_http/compression/gzip_zlib.h, kMaxUncompressedBytes.
_MAX_UNZIPPED_BYTES = 100 * 2**20

Answer = Callable[[routing.Route, bytes], bytes]

_JSON: Headers = [(b"content-type", b"application/json")]
_METRICS: Headers = [(b"content-type", CONTENT_TYPE)]
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
    """The REST API's port, bound at once.

    Raises:
        ServingError: the port is taken or the address unusable.
    """

    def __init__(self, config: ServingConfig, *, metrics_path: str | None, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._server = HttpServer(
            host=config.host,
            port=config.rest_api_port,
            what="REST",
            flags="--rest_api_port and --host",
            drain_seconds=config.drain_seconds,
        )

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._server.port

    def start(self, answer: Answer) -> None:
        """Serve; returns when the socket accepts."""
        threads = self._config.rest_api_num_threads or max(4 * (os.cpu_count() or 1), 32)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        application = _Application(
            answer,
            pool,
            self._metrics,
            metrics_path=self._metrics_path,
            cors=self._config.rest_api_enable_cors_support,
        )
        self._server.start(application)

    def stop(self) -> None:
        """Close the socket, finish what is in flight."""
        self._server.stop()


class _Application:
    def __init__(
        self,
        answer: Answer,
        pool: ThreadPoolExecutor,
        metrics: Metrics,
        *,
        metrics_path: str | None,
        cors: bool,
    ) -> None:
        self._answer = answer
        self._pool = pool
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._headers = _JSON + _CORS if cors else _JSON
        self._cors = cors

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path = _path_and_query(scope)
        if path == self._metrics_path:
            await respond(send, 200, self._metrics.page().encode(), _METRICS)
        elif not routing.is_api_path(path):
            await respond(send, 404, _NOT_FOUND_PAGE, _HTML)
        else:
            await self._api(scope, path, receive, send)

    async def _api(self, scope: MutableMapping[str, Any], path: str, receive: Receive, send: Send) -> None:
        started, method, route = time.perf_counter(), scope["method"], None
        try:
            body = await _read_body(scope, receive)
            if self._cors and method == "OPTIONS":
                await respond(send, 200, b"", self._headers)
                return
            route = routing.parse(method, path)
            content = await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, route, body)
            code, status = Code.OK, 200
        except RequestError as error:
            code, status, content = (
                error.code,
                http_status(error.code),
                json_response.error_body(error.message),
            )
        except _ClientGoneError:
            return
        except Exception:
            logger.exception("%s %s failed in a way that no request should", method, path)
            code, status = Code.INTERNAL, 500
            content = json_response.error_body("internal error; the server's log has the details")
        await respond(send, status, content, self._headers)
        if route is not None:
            self._metrics.request(
                model=route.model.name,
                api=route.verb if method == "POST" else "",
                entrypoint="REST",
                status=code.name,
                duration_us=(time.perf_counter() - started) * 1e6,
            )


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
