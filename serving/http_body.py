"""Reading the body of an HTTP request within limits."""

import logging
import zlib
from collections.abc import MutableMapping
from typing import Any

from isthmus.serving.http_server import Receive

__all__ = ["ClientGoneError", "TooLargeError", "read_body"]

logger = logging.getLogger(__name__)

# net_http/compression/gzip_zlib.h, kMaxUncompressedBytes.
_MAX_UNZIPPED_BYTES = 100 * 2**20
_MAX_DISCARDED_BYTES = 2**20


class ClientGoneError(Exception):
    """The connection was closed before the body was complete."""


class TooLargeError(Exception):
    """The body is longer than allowed."""


async def read_body(scope: MutableMapping[str, Any], receive: Receive, max_bytes: int) -> bytes:
    """The whole body, unpacked if it is gzip.

    Raises:
        TooLargeError: it is longer than max_bytes. What else the client sends has been read, within limits: most
            clients read no answer before they have sent everything.
        ClientGoneError: the client went before its end.
    """
    headers = dict(scope["headers"])
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        # A client that expects "100 Continue" sends nothing before it, and is answered at once.
        if b"expect" not in headers:
            await _discard(receive, max_bytes + _MAX_DISCARDED_BYTES)
        raise TooLargeError
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            # After its last message the client sends none, and waiting for one would never end.
            if message.get("more_body"):
                await _discard(receive, _MAX_DISCARDED_BYTES)
            raise TooLargeError
        chunks.append(chunk)
        if not message.get("more_body"):
            break
    body = b"".join(chunks)
    if b"gzip" not in headers.get(b"content-encoding", b""):
        return body
    return _unzipped(body, min(max_bytes, _MAX_UNZIPPED_BYTES))


async def _discard(receive: Receive, max_bytes: int) -> None:
    """Read on to the end of the body, or for this many bytes."""
    size = 0
    while size <= max_bytes:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def _unzipped(body: bytes, max_bytes: int) -> bytes:
    """The content of a gzip body; nothing for one that is broken or too long, as in the original."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(body, max_bytes)
    except zlib.error as error:
        logger.debug("a gzip body could not be read: %s", error)
        return b""
    return content if decompressor.eof else b""
