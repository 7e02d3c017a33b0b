"""The TF half's expected pixels come from tests/export/timm_rules.py: here it is held against timm itself."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [
    (1, 1),
    (1, 90),
    (90, 1),
    (3, 401),
    (401, 3),
    (31, 32),
    (32, 32),
    (47, 33),
    (100, 75),
    (75, 100),
    (64, 37),
]


@pytest.fixture(scope="module")
def rules():
    path = Path(__file__).parent.parent / "timm_rules.py"
    spec = importlib.util.spec_from_file_location("timm_rules", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("crop_mode", [None, "center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(3, 32, 32), (3, 24, 40)])
@pytest.mark.parametrize(
    ("interpolation", "crop_pct"),
    [
        ("bicubic", 0.875),
        ("bilinear", 1.0),
        ("nearest", 0.9),
        ("lanczos", 0.95),
        ("box", 1.2),
        ("hamming", None),
    ],
)
def test_pixels_are_timms(rules, crop_mode, input_size, interpolation, crop_pct):
    config = {
        "input_size": input_size,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": MEAN,
        "std": STD,
    }
    transform = create_transform(**config, normalize=False)
    generator = np.random.default_rng(0)
    for height, width in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        try:
            expected = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
        except ValueError:
            # crop_mode border on a line: Pillow refuses an image with an edge of 0, and so do the rules.
            with pytest.raises(ValueError, match="must be > 0"):
                rules.timm_pixels(buffer.getvalue(), config)
            continue
        np.testing.assert_array_equal(rules.timm_pixels(buffer.getvalue(), config), expected)
