"""The pixels that an image announces, and the guard in front of a model."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isthmus.serving.errors import RequestError
from isthmus.serving.image_limits import PixelGuard, num_pixels
from isthmus.serving.status import Code


def encoded(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (1, 200, 3)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is side × side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("jpeg", {}),
        ("jpeg", {"progressive": True, "exif": b"Exif\x00\x00" + b"x" * 300}),
        ("gif", {}),
        ("bmp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"lossless": False}),
        ("webp", {"exif": b"Exif\x00\x00" + b"x" * 30}),
    ],
)
def test_pixels(kind: str, options: dict[str, Any]) -> None:
    assert num_pixels(encoded(kind, (37, 21), **options)) == 37 * 21


def test_frames_of_a_gif_count() -> None:
    first, *rest = (Image.new("RGB", (40, 30), (index * 20, 0, 0)) for index in range(5))
    buffer = io.BytesIO()
    first.save(buffer, "gif", save_all=True, append_images=rest)
    assert num_pixels(buffer.getvalue()) == 40 * 30 * 5


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"BM", b"RIFFxxxxWEBP"]), st.binary()
)
def test_anything_is_answered(magic: bytes, rest: bytes) -> None:
    pixels = num_pixels(magic + rest)
    assert pixels is None or pixels >= 0


class Model:
    """Counts its calls."""

    path = Path("/m")
    signatures: dict[str, Any] = {}  # noqa: RUF012
    calls = 0

    def run(self, _feeds: Any, _fetches: Any, *, timeout_ms: int = 0) -> list[Any]:
        """Nothing."""
        assert timeout_ms == 0
        self.calls += 1
        return []

    def dtype(self, name: str) -> int:
        """Unused."""
        raise NotImplementedError(name)

    def close(self) -> None:
        """Nothing."""


def test_bombs_do_not_reach_the_model() -> None:
    from tensorflow.core.example import example_pb2

    example = example_pb2.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(png_bomb(60_000))
    model = Model()
    guard = PixelGuard(model, 10**6)
    for bomb in (png_bomb(60_000), example.SerializeToString(), encoded("jpeg", (1001, 1000))):
        value = np.array([b"fine", bomb], object)
        with pytest.raises(RequestError, match=r"pixels exceeds the 1000000 .*--max_image_pixels") as caught:
            guard.run([("x", value)], ["y"])
        assert caught.value.code is Code.INVALID_ARGUMENT
    assert model.calls == 0
    for fine in (encoded("png", (1000, 1000)), b"text", b"", "text"):
        guard.run([("x", np.array(fine, object)), ("n", np.zeros(3, np.float32))], ["y"])
    assert model.calls == 4
