"""What an HTTP client may cost before anybody has looked at its request: header size, and time to send it.

uvicorn's parser takes headers of any size and waits for them for ever. This protocol counts and times them, and
answers 431 or 408; a whole body has its own time limit. No thread waits for a slow client, only memory and a
file descriptor.
"""

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HttpLimits", "limited_protocol"]

_PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Limits of one port."""

    max_head_bytes: int = 64 * 1024
    """Request line and headers together. Beyond: 431."""

    head_timeout_s: float = 10.0
    """From the connection, or the first byte of a later request, to the end of the headers. Beyond: 408."""

    body_timeout_s: float = 300.0
    """From the end of the headers to the end of the body. Beyond: 408."""


class _LimitedProtocol(HttpToolsProtocol):
    """One connection; `limits` is set by the subclass that `limited_protocol` makes."""

    limits = HttpLimits()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        """A client that has said all may still listen (`nc -N`, `socat`): it gets the answers that are under way, and
        then the connection ends."""
        cycle = self.cycle
        if self._refused or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return self.transport.get_extra_info("sslcontext") is None

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._in_head and self._deadline is None:
            self._begin_head()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and not self._refused and self._head_bytes > self.limits.max_head_bytes:
            self._refuse(431)

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_head_bytes:
            self._refuse(431)
        if self._refused:
            return
        self._in_head = False
        self._start_clock(self.limits.body_timeout_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            self._stop_clock()
            super().on_message_complete()

    def _begin_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._start_clock(self.limits.head_timeout_s)

    def _start_clock(self, seconds: float) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(seconds, self._refuse, 408)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        self._refused = True
        self._stop_clock()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
        self.transport.close()


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with these limits."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})
