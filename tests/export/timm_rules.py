"""timm's evaluation transform with Pillow alone, for the tests that may not import torch.

`tests/export/torch_half/test_timm_rules.py` holds it against timm itself.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


def timm_pixels(encoded: bytes, preprocessing: dict[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3]: decoded, resized, cropped as timm's `transforms_imagenet_eval` does.

    Raises ValueError where Pillow does: `border` on an image so narrow that an edge rounds to nothing.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert("RGB")
    _, height, width = preprocessing["input_size"]
    crop_pct = preprocessing.get("crop_pct") or 0.875
    crop_mode = preprocessing.get("crop_mode") or "center"
    size = resized((image.height, image.width), _scale(height, width, crop_pct), crop_mode)
    if size != (image.height, image.width):
        image = image.resize(size[::-1], RESAMPLING[preprocessing["interpolation"]])
    fill = tuple(round(255 * m) for m in preprocessing["mean"]) if crop_mode == "border" else (0, 0, 0)
    return np.asarray(_center_crop(image, height, width, fill))


def _scale(height: int, width: int, crop_pct: float) -> tuple[int, int]:
    return math.floor(height / crop_pct), math.floor(width / crop_pct)


def resized(size: tuple[int, int], scale: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) of the whole resized image."""
    height, width = size
    if crop_mode == "squash":
        return scale
    if crop_mode == "center" and scale[0] == scale[1]:
        short, long = sorted(size)
        new_short, new_long = scale[0], int(scale[0] * long / short)
        return (new_long, new_short) if width <= height else (new_short, new_long)
    ratios = height / scale[0], width / scale[1]
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _center_crop(image: Image.Image, height: int, width: int, fill: tuple[int, ...]) -> Image.Image:
    missing_width, missing_height = max(width - image.width, 0), max(height - image.height, 0)
    if missing_width or missing_height:
        border = (
            missing_width // 2,
            missing_height // 2,
            (missing_width + 1) // 2,
            (missing_height + 1) // 2,
        )
        image = ImageOps.expand(image, border=border, fill=fill)
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
