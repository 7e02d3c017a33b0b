"""The REST wire: a raw ASGI application on uvicorn. Requests are answered in a thread pool, the loop only
moves bytes."""

import asyncio
import contextvars
import logging
import os
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from isthmus.serving import json_response, routing
from isthmus.serving.access_log import AccessLog
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.http_body import ClientGoneError, TooLargeError, read_body
from isthmus.serving.http_limits import HttpLimits
from isthmus.serving.http_server import Headers, HttpServer, Message, Receive, Send, respond
from isthmus.serving.metrics import CONTENT_TYPE, Metrics
from isthmus.serving.security import ApiTokens, read_tls
from isthmus.serving.status import Code, code_of_http_status, http_status
from isthmus.serving.tracing import Tracing

__all__ = ["RestEdge"]

logger = logging.getLogger(__name__)


Answer = Callable[[routing.Route, bytes], bytes]

_JSON: Headers = [(b"content-type", b"application/json")]
_METRICS: Headers = [(b"content-type", CONTENT_TYPE)]
_CLOSE: Headers = [(b"connection", b"close")]
_HTML: Headers = [(b"content-type", b"text/html")]
_CORS: Headers = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
_DEFAULT_PORT = 8501
# libevent's evhttp_send_error.
_NOT_FOUND_PAGE = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
)


class RestEdge:
    """The REST API's port, bound at once.

    Raises:
        PortTakenError: or the address is unusable.
        ServingError: the TLS configuration is.
    """

    def __init__(
        self,
        config: ServingConfig,
        *,
        metrics_path: str | None,
        metrics: Metrics,
        tokens: ApiTokens | None = None,
        access_log: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._tracing = tracing
        self._access_log = access_log
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._tokens = tokens
        self._pool: ThreadPoolExecutor | None = None
        tls_file = config.rest_ssl_config_file
        self._server = HttpServer(
            host=config.host,
            port=_DEFAULT_PORT if config.rest_api_port is None else config.rest_api_port,
            what="REST",
            flags="--rest_api_port and --host",
            drain_seconds=config.drain_seconds,
            limits=HttpLimits(
                max_head_bytes=config.http_max_head_bytes,
                head_timeout_s=config.http_head_timeout_seconds,
                body_timeout_s=config.http_body_timeout_seconds,
            ),
            tls=None if tls_file is None else read_tls(tls_file).ssl_context(),
        )

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._server.port

    def listen(self) -> None:
        """Take connections; who comes now is answered once `start` was called.

        Raises:
            PortTakenError: meanwhile.
        """
        self._server.listen()

    def start(self, answer: Answer) -> None:
        """Serve; returns when the socket accepts."""
        threads = self._config.rest_api_num_threads or max(4 * (os.cpu_count() or 1), 32)
        self._pool = pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        application = _Application(
            answer,
            pool,
            self._metrics,
            metrics_path=self._metrics_path,
            cors=self._config.rest_api_enable_cors_support,
            tokens=self._tokens,
            access_log=self._access_log,
            max_body_bytes=self._config.max_request_bytes,
            tracing=self._tracing,
        )
        self._server.start(application)

    def stop(self) -> None:
        """Close the socket, finish what is in flight. A computation that outlasts drain_seconds goes on in its
        thread."""
        self._server.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class _Application:
    def __init__(
        self,
        answer: Answer,
        pool: ThreadPoolExecutor,
        metrics: Metrics,
        *,
        metrics_path: str | None,
        cors: bool,
        tokens: ApiTokens | None,
        access_log: AccessLog | None,
        max_body_bytes: int,
        tracing: Tracing | None,
    ) -> None:
        self._tracing = tracing
        self._answer = answer
        self._pool = pool
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._headers = _JSON + _CORS if cors else _JSON
        self._cors = cors
        self._tokens = tokens
        self._access_log = access_log
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path = _path_and_query(scope)
        if self._access_log is not None:
            receive, send = _logged(scope, path, receive, send, self._access_log)
        refusal = self._refusal(scope)
        if refusal is not None:
            await respond(send, *refusal, self._headers + _CLOSE)
        elif path == self._metrics_path:
            await respond(send, 200, self._metrics.page().encode(), _METRICS)
        elif self._metrics_path is not None and path.startswith(f"{self._metrics_path}?"):
            text = f"Unexpected path: {path}. Should be {self._metrics_path}"
            await respond(send, 400, text.encode("latin-1"), _METRICS)
        elif not routing.is_api_path(path):
            await respond(send, 404, _NOT_FOUND_PAGE, _HTML)
        else:
            await self._api(scope, path, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, bytes] | None:
        """Status and content for a client that may not come in; no byte of its body is read."""
        if self._tokens is None or (self._cors and scope["method"] == "OPTIONS"):
            return None
        try:
            self._tokens.check(dict(scope["headers"]).get(b"authorization"))
        except RequestError as error:
            return http_status(error.code), json_response.error_body(error.message)
        return None

    async def _api(self, scope: MutableMapping[str, Any], path: str, receive: Receive, send: Send) -> None:
        started, method, route = time.perf_counter(), scope["method"], None
        try:
            body = await read_body(scope, receive, self._max_body_bytes)
            if self._cors and method == "OPTIONS":
                await respond(send, 200, b"", self._headers)
                return
            route = routing.parse(method, path)
            content = await self._answered(route, body, scope)
            code, status = Code.OK, 200
        except RequestError as error:
            code, status, content = (
                error.code,
                http_status(error.code),
                json_response.error_body(error.message),
            )
        except ClientGoneError:
            return
        except asyncio.CancelledError:
            # Only a stop that has waited long enough does this; the loop sends what is sent now, and ends.
            code, status = Code.UNAVAILABLE, 503
            content = json_response.error_body("the server stops")
        except TooLargeError:
            text = f"the body exceeds {self._max_body_bytes} bytes"
            await respond(send, 413, json_response.error_body(text), self._headers + _CLOSE)
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

    async def _answered(self, route: routing.Route, body: bytes, scope: MutableMapping[str, Any]) -> bytes:
        """The answer, computed in the pool, within a span when there are traces."""
        loop = asyncio.get_running_loop()
        if self._tracing is None or scope["method"] != "POST":
            return await loop.run_in_executor(self._pool, self._answer, route, body)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        attributes = {"http.request.method": "POST", "url.path": scope["raw_path"].decode("latin-1")}
        with self._tracing.request(f"POST :{route.verb}", headers, attributes) as span:
            code = Code.INTERNAL
            try:
                run = contextvars.copy_context().run
                content = await loop.run_in_executor(self._pool, run, self._answer, route, body)
                code = Code.OK
                return content
            except RequestError as error:
                code = error.code
                raise
            finally:
                span.done(
                    code, **{"http.response.status_code": 200 if code is Code.OK else http_status(code)}
                )


def _path_and_query(scope: MutableMapping[str, Any]) -> str:
    """As sent. The original matches its URLs against path and query together: a query makes a request
    malformed."""
    path: bytes = scope["raw_path"].partition(b"?")[0]
    query: bytes = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _logged(
    scope: MutableMapping[str, Any], path: str, receive: Receive, send: Send, log: AccessLog
) -> tuple[Receive, Send]:
    """The two ends of a request, counting; its line is written with the last byte of the answer."""
    started, counts = time.perf_counter(), {"in": 0, "out": 0, "status": 0}

    async def counting_receive() -> Message:
        message = await receive()
        counts["in"] += len(message.get("body", b""))
        return message

    async def counting_send(message: Message) -> None:
        counts["status"] = message.get("status", counts["status"])
        counts["out"] += len(message.get("body", b""))
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            log.request(
                wire="REST",
                peer=":".join(map(str, scope.get("client") or ("", ""))),
                method=scope["method"],
                path=path,
                status=code_of_http_status(counts["status"]).name,
                http_status=counts["status"],
                bytes_in=counts["in"],
                bytes_out=counts["out"],
                duration_ms=(time.perf_counter() - started) * 1e3,
            )

    return counting_receive, counting_send
