"""The HTTP server's connections."""

import asyncio
import socket
import threading
from collections.abc import MutableMapping
from typing import Any

import pytest

from isthmus.serving.errors import PortTakenError
from isthmus.serving.http_server import HttpServer, Receive, Send, respond


def test_nothing_waits_for_an_acknowledgement() -> None:
    """The connection that an application answers on has Nagle's algorithm switched off."""
    seen: list[int] = []
    done = threading.Event()

    async def application(_scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        loop: Any = asyncio.get_running_loop()
        for transport in list(loop._transports.values()) if hasattr(loop, "_transports") else []:
            connection = transport.get_extra_info("socket")
            if connection is not None and connection.type == socket.SOCK_STREAM and connection.proto:
                seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await respond(send, 200, b"ok", [])
        done.set()

    server = HttpServer(host="127.0.0.1", port=0, what="a test", flags="none", drain_seconds=1)
    server.start(application)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
            assert done.wait(10)
    finally:
        server.stop()
    assert seen
    assert all(seen)


def test_a_port_that_was_bound_twice_is_taken_by_who_listens_first() -> None:
    """Two servers that start at the same time bind the same port, and neither knows."""
    one, other = (
        HttpServer(host="127.0.0.1", port=port, what="a test", flags="--none", drain_seconds=1)
        for port in [unused_port()] * 2
    )
    one.listen()
    with pytest.raises(
        PortTakenError, match=r"for a test: Address already in use; choose another with --none"
    ):
        other.listen()
    one.stop()
    other.stop()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
