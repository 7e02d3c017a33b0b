"""Refuses decompression bombs: the number of pixels that an image's header announces, before anything decodes
it.

A 100 kB PNG may say that it is 60,000 × 60,000, and decoding it takes 10 GB. The server does not know which of
a model's inputs are images; it looks at every string that begins like one, and at the byte features of every
string that reads as a tf.train.Example.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.serving.errors import RequestError
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.status import Code
from isthmus.serving.tensors import DT_STRING, dtype_number

__all__ = ["PixelGuard", "num_pixels"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
# SOF0 to SOF15 without DHT, JPG and DAC, which lie among them.
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MIN_EXAMPLE_BYTES = 24


class PixelGuard:
    """A `LoadedModel` that refuses images beyond a number of pixels.

    Args:
        model: the model behind it.
        max_pixels: width × height × frames of one image.
    """

    def __init__(self, model: LoadedModel, max_pixels: int) -> None:
        self.path: Path = model.path
        self.signatures = model.signatures
        self.dtype = model.dtype
        self.close = model.close
        self._model = model
        self._max_pixels = max_pixels

    def run(
        self,
        feeds: Sequence[tuple[str, np.ndarray[Any, Any]]],
        fetches: Sequence[str],
        *,
        timeout_ms: int = 0,
    ) -> list[np.ndarray[Any, Any]]:
        """`SavedModel.run`.

        Raises:
            RequestError: also INVALID_ARGUMENT for an image with more pixels than allowed.
        """
        for _, value in feeds:
            if dtype_number(value) == DT_STRING:
                for data in value.reshape(-1):
                    self._check(data)
        return self._model.run(feeds, fetches, timeout_ms=timeout_ms)

    def _check(self, data: Any) -> None:
        if not isinstance(data, bytes):
            return
        for image in _images_in(data):
            pixels = num_pixels(image)
            if pixels is not None and pixels > self._max_pixels:
                raise RequestError(
                    Code.INVALID_ARGUMENT,
                    f"an image of {pixels} pixels exceeds the {self._max_pixels} that this server decodes "
                    "(--max_image_pixels)",
                )


def num_pixels(data: bytes) -> int | None:
    """Width × height (× frames of a GIF) that an encoded PNG, JPEG, GIF, BMP or WebP announces; None for what
    is none of these or ends before it says so."""
    try:
        for magic, pixels in _PIXELS_BY_MAGIC.items():
            if data.startswith(magic):
                return pixels(data)
    except (struct.error, IndexError):
        pass
    return None


def _images_in(data: bytes) -> Iterator[bytes]:
    yield data
    # An Example is field 1, length-delimited.
    if data[:1] != b"\n" or len(data) < _MIN_EXAMPLE_BYTES:
        return
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    try:
        example = example_pb2.Example.FromString(data)
    except DecodeError:
        return
    for feature in example.features.feature.values():
        yield from feature.bytes_list.value


def _png_pixels(data: bytes) -> int:
    width, height = struct.unpack_from(">II", data, 16)
    return int(width) * int(height)


def _bmp_pixels(data: bytes) -> int:
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(int(width) * int(height))


def _jpeg_pixels(data: bytes) -> int | None:
    """The largest frame among the headers: a decoder that ignores a second one costs nothing to refuse."""
    position, largest = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            position += 2
        elif marker == 0xDA:  # the scan: what follows is pixels
            break
        else:
            if marker in _JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", data, position + 5)
                largest = max(largest or 0, height * width)
            position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
    return largest


def _gif_pixels(data: bytes) -> int:
    """Every frame is decoded to the size of the screen."""
    width, height = struct.unpack_from("<HH", data, 6)
    position, frames = 13 + _gif_table_bytes(data[10]), 0
    while position < len(data) and data[position] in (0x21, 0x2C):
        if data[position] == 0x21:
            position += 2
        else:
            frames += 1
            frame_width, frame_height = struct.unpack_from("<HH", data, position + 5)
            width, height = max(width, frame_width), max(height, frame_height)
            position += 11 + _gif_table_bytes(data[position + 9])
        while data[position]:
            position += 1 + data[position]
        position += 1
    return int(width) * int(height) * max(frames, 1)


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_pixels(data: bytes) -> int | None:
    kind = data[8:16].removeprefix(b"WEBP")
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return width * height
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return (width & 0x3FFF) * (height & 0x3FFF)
    return None


_PIXELS_BY_MAGIC: dict[bytes, Callable[[bytes], int | None]] = {
    _PNG: _png_pixels,
    b"\xff\xd8": _jpeg_pixels,
    b"GIF87a": _gif_pixels,
    b"GIF89a": _gif_pixels,
    b"BM": _bmp_pixels,
    b"RIFF": _webp_pixels,
}
