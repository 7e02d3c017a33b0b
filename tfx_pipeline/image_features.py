"""What the pipeline knows of an image besides its bytes: from one decoding, in numbers that statistics can compare.

    results = measured([encoded, ...])      # Measured, or the reason why PIL cannot read it

| feature | is |
|---|---|
| height, width, aspect | pixels; width ÷ height |
| channels, format | of the file: 1, 3 or 4 bands; `png`, `jpeg`, … |
| mean, std | of each of R, G and B, in 8-bit levels (0 to 255), over all pixels |
| brightness | mean of the luma Y = 0.299 R + 0.587 G + 0.114 B (ITU-R 601, as PIL's mode L has it), in levels |
| sharpness | variance of Y's Laplacian, in levels²; blur lowers it, noise raises it |

The Laplacian of a pixel is the sum of its four neighbours minus four times itself; pixels at the border have none, and
an image without inner pixels has sharpness 0.

Everything is measured after `convert("RGB")`, as training and the served model see the image. No TensorFlow: Beam's
workers import this module.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

# What PIL raises for bytes that are no image it can read, or only a part of one.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_LEVELS = np.arange(256, dtype=np.int64)
_LEVELS_AND_SQUARES = np.stack([_LEVELS, _LEVELS**2], axis=1)
# Decoded images wait to be measured together, but never more than this.
_MAX_WAITING_IMAGES = 256
_MAX_WAITING_PIXELS = 2**21


class Measured(NamedTuple):
    """One image that could be read."""

    sha256: bytes
    """Of the file's bytes, 32 of them."""
    format: str
    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    brightness: float
    sharpness: float


class _Decoded(NamedTuple):
    sha256: bytes
    format: str
    channels: int
    luma: np.ndarray
    """uint8 [height, width]."""
    histogram: list[int]
    """256 counts of the luma, and where the image has colours 256 more for each of R, G, B."""


def measured(encoded: Iterable[bytes]) -> Iterator[Measured | str]:
    """Decode and measure images, in order.

    Args:
        encoded: The bytes of one file each.

    Yields:
        The measurements, or why there is no whole image in these bytes.
    """
    files = iter(encoded)
    while decoded := _decode_some(files):
        yield from _measure(decoded)


def _decode_some(files: Iterator[bytes]) -> list[_Decoded | str]:
    """As many as may wait in memory together; empty at the end."""
    waiting: list[_Decoded | str] = []
    num_pixels = 0
    with warnings.catch_warnings():
        # A picture that PIL merely grumbles about (odd EXIF, transparent palette) trains all the same.
        warnings.simplefilter("ignore")
        for encoded in files:
            decoded = _decode(encoded)
            waiting.append(decoded)
            num_pixels += 0 if isinstance(decoded, str) else decoded.luma.size
            if len(waiting) >= _MAX_WAITING_IMAGES or num_pixels >= _MAX_WAITING_PIXELS:
                break
    return waiting


def _decode(encoded: bytes) -> _Decoded | str:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image_format, channels = image.format or "unknown", len(image.getbands())
            if image.mode == "L":
                # Its RGB is three times itself, and so is its luma.
                image.load()
                pixels, histogram = _pixels(image), image.histogram()
            else:
                rgb = image.convert("RGB")
                luma = rgb.convert("L")
                pixels, histogram = _pixels(luma), luma.histogram() + rgb.histogram()
        return _Decoded(hashlib.sha256(encoded).digest(), image_format.lower(), channels, pixels, histogram)
    except _UNREADABLE as error:
        # PIL puts the address of its in-memory file into some texts: no two runs would agree.
        return str(error).split(" <_io.", maxsplit=1)[0] or type(error).__name__


def _pixels(luma: Image.Image) -> np.ndarray:
    """What np.asarray gives, uint8 [height, width], without its detour."""
    return np.frombuffer(luma.tobytes(), np.uint8).reshape(luma.height, luma.width)


def _measure(decoded: list[_Decoded | str]) -> Iterator[Measured | str]:
    whole = [one for one in decoded if not isinstance(one, str)]
    sharpness = iter(_sharpness([one.luma for one in whole]))
    levels = iter(_levels([one.histogram for one in whole]))
    for one in decoded:
        if isinstance(one, str):
            yield one
            continue
        (brightness, *mean), (luma_std, *std) = next(levels)
        height, width = one.luma.shape
        yield Measured(
            one.sha256,
            one.format,
            height,
            width,
            one.channels,
            tuple(mean) if mean else (brightness,) * 3,
            tuple(std) if std else (luma_std,) * 3,
            brightness,
            next(sharpness),
        )


def _levels(histograms: list[list[int]]) -> Iterator[tuple[list[float], list[float]]]:
    """(means, standard deviations) of each histogram's 1 or 4 times 256 counts; exact, from integers."""
    if not histograms:
        return
    counts = np.fromiter(
        itertools.chain.from_iterable(histograms), np.int64, count=sum(map(len, histograms))
    ).reshape(-1, 256)
    num_pixels = counts.sum(axis=1)
    mean, square = (counts @ _LEVELS_AND_SQUARES / num_pixels[:, None]).T
    std = np.sqrt(np.maximum(square - mean**2, 0)).tolist()
    means, start = mean.tolist(), 0
    for histogram in histograms:
        stop = start + len(histogram) // 256
        yield means[start:stop], std[start:stop]
        start = stop


def _sharpness(lumas: list[np.ndarray]) -> list[float]:
    """Variance of the Laplacian of each uint8 [height, width]; images of one size are measured together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, luma in enumerate(lumas):
        by_shape.setdefault(luma.shape, []).append(index)
    sharpness = [0.0] * len(lumas)
    for (height, width), indices in by_shape.items():
        if min(height, width) < 3:
            continue
        y = np.stack([lumas[index] for index in indices]).astype(np.int16)
        laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
        laplacian -= 4 * y[:, 1:-1, 1:-1]
        variance = laplacian.reshape(len(indices), -1).astype(np.float32).var(axis=1)
        for index, value in zip(indices, variance.tolist(), strict=True):
            sharpness[index] = value
    return sharpness
