"""Bodies as the ASGI server hands them over: in any pieces, and nothing after the last one."""

import asyncio
import gzip
from collections.abc import Iterator

import pytest

from isthmus.serving.http_body import ClientGoneError, TooLargeError, read_body
from isthmus.serving.http_server import Message

_MIB = 2**20


def _pieces(*sizes: int, ends: bool = True) -> list[Message]:
    """One message a piece; the last says that it is the last, unless the client goes instead."""
    last = len(sizes) - 1 if ends else len(sizes)
    messages: list[Message] = [
        {"type": "http.request", "body": b" " * size, "more_body": index != last}
        for index, size in enumerate(sizes)
    ]
    return messages if ends else [*messages, {"type": "http.disconnect"}]


def _read(messages: list[Message], headers: dict[bytes, bytes] | None = None, max_bytes: int = 100) -> bytes:
    """What read_body makes of the messages; asked for more than there are, it waits, as a connection does."""
    coming: Iterator[Message] = iter(messages)

    async def receive() -> Message:
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    scope = {"headers": list((headers or {}).items())}

    async def story() -> bytes:
        return await asyncio.wait_for(read_body(scope, receive, max_bytes), timeout=5)

    try:
        return asyncio.run(story())
    finally:
        messages[:] = coming


def test_pieces_are_joined() -> None:
    assert _read(_pieces(40, 60)) == b" " * 100


@pytest.mark.parametrize("sizes", [(101,), (40, 61), (101, 5), (101, 0), (40, 40, 40)])
def test_too_large_in_any_pieces(sizes: tuple[int, ...]) -> None:
    # One message with the whole body is what a client on a busy machine becomes: all of it has arrived before
    # anybody looks. Waiting for another message then would never end.
    messages = _pieces(*sizes)
    with pytest.raises(TooLargeError):
        _read(messages)
    assert not messages, "left unread: the client would not look at the answer"


def test_too_large_by_its_announcement() -> None:
    messages = _pieces(60, 60)
    with pytest.raises(TooLargeError):
        _read(messages, {b"content-length": b"120"})
    assert not messages


def test_a_client_that_waits_for_100_is_answered_at_once() -> None:
    messages = _pieces(60, 60)
    with pytest.raises(TooLargeError):
        _read(messages, {b"content-length": b"120", b"expect": b"100-continue"})
    assert len(messages) == 2


def test_reading_on_has_an_end() -> None:
    messages = _pieces(*[_MIB // 2] * 10)
    with pytest.raises(TooLargeError):
        _read(messages)
    assert 5 <= len(messages) < 10


def test_a_client_that_goes() -> None:
    with pytest.raises(ClientGoneError):
        _read(_pieces(40, ends=False))
    with pytest.raises(TooLargeError):
        _read(_pieces(101, ends=False))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (gzip.compress(b"x" * 90), b"x" * 90),
        (gzip.compress(b"x" * 101), b""),
        (gzip.compress(b"x" * 90)[:-9], b""),
        (b"no gzip", b""),
    ],
)
def test_gzip(body: bytes, expected: bytes) -> None:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    assert _read(messages, {b"content-encoding": b"gzip"}) == expected
