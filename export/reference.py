"""`reference.npz`: the real images that every later stage is compared on, and torch's answers for them."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.errors import ExportError

MIN_IMAGES = 16

_ARRAYS = ("images", "pixels", "logits", "encoded_bytes", "encoded_offsets", "labels", "paths")


@dataclass(kw_only=True, frozen=True, eq=False)
class Reference:
    """N evaluation images at three points of the way, and the logits at its end."""

    images: np.ndarray
    """float32 [N, H, W, 3] (NHWC): after timm's own preprocessing, normalisation included."""

    pixels: np.ndarray
    """uint8 [N, H, W, 3]: the same images before normalisation."""

    logits: np.ndarray
    """float32 [N, C]: torch's answer, eval mode, fp32."""

    encoded: tuple[bytes, ...]
    """N image files as they lie on disk (PNG, JPEG, …)."""

    labels: np.ndarray
    """int64 [N]: the true class, -1 where it is not known."""

    paths: tuple[str, ...]
    """N file names relative to the data root, for people."""

    def __post_init__(self) -> None:
        """A reference whose parts do not fit together proves nothing."""
        num_images = len(self.images)
        lengths = {
            "images": num_images,
            "pixels": len(self.pixels),
            "logits": len(self.logits),
            "encoded": len(self.encoded),
            "labels": len(self.labels),
            "paths": len(self.paths),
        }
        if len(set(lengths.values())) != 1:
            raise ExportError(f"reference images: the parts have different lengths: {lengths}")
        if self.images.ndim != 4 or self.images.shape != self.pixels.shape or self.logits.ndim != 2:
            raise ExportError(
                "reference images: want images and pixels [N, H, W, 3] and logits [N, C], got "
                f"{self.images.shape}, {self.pixels.shape} and {self.logits.shape}"
            )

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write the file; the same reference gives the same bytes (zip entries carry no time of day)."""
        offsets = np.cumsum([0, *(len(data) for data in self.encoded)], dtype=np.int64)
        np.savez_compressed(
            path,
            images=self.images.astype(np.float32, copy=False),
            pixels=self.pixels.astype(np.uint8, copy=False),
            logits=self.logits.astype(np.float32, copy=False),
            encoded_bytes=np.frombuffer(b"".join(self.encoded), dtype=np.uint8),
            encoded_offsets=offsets,
            labels=self.labels.astype(np.int64, copy=False),
            paths=np.array(self.paths, dtype=np.str_),
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read the file without unpickling anything.

        Raises:
            ExportError: The file is missing, damaged or not a reference.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in _ARRAYS}
        except FileNotFoundError:
            raise ExportError(f"no reference images at {path}") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ExportError(f"{path} is not a readable reference.npz: {error}") from error
        offsets = arrays["encoded_offsets"]
        blob = arrays["encoded_bytes"].tobytes()
        return cls(
            images=arrays["images"],
            pixels=arrays["pixels"],
            logits=arrays["logits"],
            encoded=tuple(blob[a:b] for a, b in itertools.pairwise(offsets)),
            labels=arrays["labels"],
            paths=tuple(str(name) for name in arrays["paths"]),
        )


def in_batches(
    call: Callable[[Any], np.ndarray], items: Sequence[Any] | np.ndarray, batch_size: int
) -> np.ndarray:
    """Answers [N, ...] for N items, asked for in batches of exactly `batch_size`.

    The last batch is filled up with the first items, whose second answers are dropped: a short batch would
    measure another batch size.
    """
    num_items = len(items)
    answers = []
    for start in range(0, num_items, batch_size):
        chosen = [(start + i) % num_items for i in range(batch_size)]
        batch = items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]
        answers.append(np.asarray(call(batch))[: num_items - start])
    return np.concatenate(answers)
