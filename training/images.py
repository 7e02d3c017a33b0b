"""Image files one by one: which count, whether they decode, and what their content hashes to. No torch."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from isthmus.lineage.files import sha256_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
"""What the served model decodes as well (of a GIF: its first frame)."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One image file after a look inside."""

    path: Path
    sha256: str
    error: str | None
    """Why PIL cannot decode it; None if it can."""


def image_files(folder: Path) -> list[Path]:
    """Every image file under `folder`, at any depth, sorted; hidden files and other suffixes do not
    count."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def inspect(paths: Sequence[Path], *, label: str) -> list[Inspected]:
    """Decode and hash each file, in order, on a few threads (PIL and hashlib release the interpreter lock).

    Shows a progress bar called `label` on a terminal.
    """
    import os
    import sys

    from tqdm import tqdm

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, warnings.catch_warnings():
        # A picture that PIL merely grumbles about (odd EXIF, transparent palette) trains all the same.
        warnings.simplefilter("ignore")
        results = pool.map(inspect_one, paths)
        return list(tqdm(results, total=len(paths), desc=label, unit="img", file=sys.stderr, disable=None))


def inspect_one(path: Path) -> Inspected:
    """Decode the way timm does at training time (`Image.open(...).convert("RGB")`), then hash the file."""
    from PIL import Image

    error = None
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        # SyntaxError is what PIL raises for a broken PNG chunk.
        error = str(problem).replace(str(path), path.name) or type(problem).__name__
    return Inspected(path=path, sha256=sha256_file(path), error=error)
