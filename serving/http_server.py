"""An ASGI application on uvicorn, in a thread of its own, on a port that is bound before anything else
happens."""

import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from isthmus.serving.errors import ServingError
from isthmus.serving.http_limits import HttpLimits, limited_protocol
from isthmus.serving.ports import bound_socket, port_taken

__all__ = ["Application", "Headers", "HttpServer", "Message", "Receive", "Send", "respond"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_DEFAULT_LIMITS = HttpLimits()
# Clients keep connections in pools; one that is closed under them costs them a failed request.
_KEEP_ALIVE_SECONDS = 75
_MAX_WAITING_CONNECTIONS = 2048
# A client that takes no byte of its answer for this long is gone.
_UNACKNOWLEDGED_MS = 60_000


class HttpServer:
    """Binds at once, takes connections from `listen` on, and serves them from `start` on.

    Args:
        host: address to listen on.
        port: TCP port; 0 for any free one.
        what: what the port is for, and flags: which flags choose it (for the error text).
        drain_seconds: how long requests in flight may take after `stop`.
        limits: what a client may cost.
        tls: speak HTTPS.

    Raises:
        PortTakenError: or the address is unusable.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        what: str,
        flags: str,
        drain_seconds: float,
        limits: HttpLimits = _DEFAULT_LIMITS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = bound_socket(host, port, what=what, flags=flags)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        self._what, self._flags = what, flags
        self.port: int = self._socket.getsockname()[1]
        self._drain_seconds = drain_seconds
        self._limits = limits
        self._tls = tls
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def listen(self) -> None:
        """Take connections; who comes now is answered once `start` was called.

        Raises:
            PortTakenError: by one that was bound before this one was and listens since.
        """
        try:
            self._socket.listen(_MAX_WAITING_CONNECTIONS)
        except OSError as error:
            host, port = self._socket.getsockname()[:2]
            raise port_taken(
                f"{host}:{port}", self._what, self._flags, error.strerror or str(error)
            ) from error

    def start(self, application: Application) -> None:
        """Serve; returns when the socket accepts."""
        tls = self._tls
        config = uvicorn.Config(
            application,
            http=limited_protocol(self._limits),
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            backlog=_MAX_WAITING_CONNECTIONS,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(self._drain_seconds)),
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServingError(
                    f"the HTTP server on port {self.port} did not start; the log has the reason"
                )
            time.sleep(0.01)

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


async def respond(send: Send, status: int, content: bytes, headers: Headers) -> None:
    """Send a whole answer."""
    length = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + length})
    await send({"type": "http.response.body", "body": content})
