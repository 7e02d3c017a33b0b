"""What is measured of an image, against the definitions written out with numpy."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from isthmus.tfx_pipeline.image_features import Measured, measured


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def one(data: bytes) -> Measured:
    (found,) = measured([data])
    assert isinstance(found, Measured)
    return found


def laplacian_variance(luma: np.ndarray) -> float:
    """The definition, pixel by pixel."""
    y = luma.astype(int)
    values = [
        y[i - 1, j] + y[i + 1, j] + y[i, j - 1] + y[i, j + 1] - 4 * y[i, j]
        for i in range(1, y.shape[0] - 1)
        for j in range(1, y.shape[1] - 1)
    ]
    return float(np.var(values))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_everything_is_measured_on_what_training_sees(mode: str) -> None:
    image = noise(11, 7).convert(mode)
    data = encoded(image)
    found = one(data)
    with Image.open(io.BytesIO(data)) as opened:
        rgb = opened.convert("RGB")
        channels = len(opened.getbands())
    pixels = np.asarray(rgb, dtype=float).reshape(-1, 3)
    luma = np.asarray(rgb.convert("L"))
    assert found.sha256 == hashlib.sha256(data).digest()
    assert (found.format, found.height, found.width, found.channels) == ("png", 11, 7, channels)
    assert found.mean == pytest.approx(pixels.mean(axis=0), rel=1e-9)
    assert found.std == pytest.approx(pixels.std(axis=0), rel=1e-9)
    assert found.brightness == pytest.approx(luma.mean(), rel=1e-9)
    assert found.sharpness == pytest.approx(laplacian_variance(luma), rel=1e-5)


def test_blur_lowers_sharpness_and_darkness_does_not_change_the_rest() -> None:
    image = noise(32, 32)
    blurred = image.resize((16, 16)).resize((32, 32))
    assert one(encoded(blurred)).sharpness < one(encoded(image)).sharpness / 4
    constant = one(encoded(Image.new("RGB", (5, 5), (10, 20, 30))))
    assert (constant.mean, constant.std, constant.sharpness) == ((10.0, 20.0, 30.0), (0.0, 0.0, 0.0), 0.0)


def test_an_image_without_inner_pixels_has_no_sharpness() -> None:
    assert one(encoded(noise(2, 9))).sharpness == 0.0


def test_many_sizes_and_broken_files_come_back_in_order() -> None:
    whole = encoded(noise(20, 20))
    files = []
    for number in range(600):
        size = 3 + number % 4
        files.append((whole[:50], b"no image", encoded(noise(size, size, number)))[min(number % 7, 2)])
    found = list(measured(files))
    assert len(found) == 600
    for number, (data, each) in enumerate(zip(files, found, strict=True)):
        if number % 7 == 0:
            assert isinstance(each, str)
        elif number % 7 == 1:
            assert each == "cannot identify image file"
        else:
            assert each == one(data)


def test_nothing_gives_nothing() -> None:
    assert list(measured([])) == []


def test_a_jpeg_is_decoded_once_and_called_by_its_content() -> None:
    found = one(encoded(noise(16, 16), "JPEG"))
    assert (found.format, found.channels) == ("jpeg", 3)
