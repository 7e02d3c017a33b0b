"""A small folder of images that a net can tell apart: coloured squares with noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}

WriteImages = Callable[..., Path]


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """write(folder, num, colour): `num` different 16 x 16 PNGs in a new folder below tmp_path."""

    def write(folder: str | Path, num: int, colour: str = "red") -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for index in range(num):
            noise = np.random.default_rng([index, *str(folder).encode()])
            pixels = noise.integers(-40, 40, (16, 16, 3)) + np.array(COLOURS[colour])
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f"{index:03d}.png")
        return path

    return write


@pytest.fixture
def images(write_images: WriteImages, tmp_path: Path) -> Path:
    """A root with three classes of 20 images and no splits."""
    for colour in COLOURS:
        write_images(f"images/{colour}", 20, colour)
    return tmp_path / "images"
