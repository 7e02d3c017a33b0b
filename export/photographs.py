"""Real images for a model that comes without any: windows of the two photographs that scikit-learn ships.

They are photographs, so what a model computes on them has the statistics of real use; but they are two scenes
only. A model's own images are the better reference: `--images DIR`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.errors import ExportError
from isthmus.lineage.files import publish_directory

NUM_WINDOWS = 64
SOURCE = f"{NUM_WINDOWS} windows of the two photographs that scikit-learn ships (china.jpg, flower.jpg)"

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_MARK = "SOURCE"


def folder_of_windows(home: Path) -> Path:
    """A folder with 64 PNG files below `home`, written once; the same files every time.

    Windows differ in size (a third of the photograph to all of it), aspect and place.

    Raises:
        ExportError: scikit-learn is not installed.
    """
    target = home.absolute() / "data" / "photographs"
    if (target / _MARK).is_file():
        return target
    photographs = _photographs()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".photographs-", dir=target.parent))
    try:
        rng = np.random.default_rng(0)
        for number in range(NUM_WINDOWS):
            name, photograph = photographs[number % len(photographs)]
            # The first of each is the whole photograph.
            window = photograph if number < len(photographs) else photograph.crop(_box(photograph.size, rng))
            window.save(staging / f"{number:02d}-{Path(name).stem}.png")
        (staging / _MARK).write_text(f"{SOURCE}\n", encoding="utf-8")
        staging.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        publish_directory(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _photographs() -> list[tuple[str, Any]]:
    from PIL import Image

    try:
        from sklearn import datasets
    except ImportError:
        raise ExportError(
            "no reference images: give some with --images DIR (scikit-learn, whose sample photographs would "
            "do, is not installed)"
        ) from None
    folder = Path(datasets.__file__).parent / "images"
    return [(name, Image.open(folder / name).convert("RGB")) for name in _PHOTOGRAPHS]


def _box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of a window, in pixels."""
    width, height = (int(rng.integers(edge // 3, edge + 1)) for edge in size)
    left, upper = (
        int(rng.integers(0, edge - part + 1)) for edge, part in zip(size, (width, height), strict=True)
    )
    return left, upper, left + width, upper + height
