"""The real images that parity is measured on, taken through timm's own evaluation transform."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.checkpoint import Checkpoint
from isthmus.export.errors import ExportError
from isthmus.export.reference import MIN_IMAGES

log = logging.getLogger(__name__)

#: What counts as an image: what training takes (a test holds the lists of the parts equal).
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


@dataclass(kw_only=True, frozen=True, eq=False)
class EvaluationImages:
    """N images before they have answers; the fields are `Reference`'s."""

    images: np.ndarray
    pixels: np.ndarray
    encoded: tuple[bytes, ...]
    labels: np.ndarray
    paths: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Files passed over because PIL cannot decode them."""


def choose(data_root: Path, *, split: str, labels: list[str], count: int) -> list[tuple[Path, int]]:
    """(file, class index) of at most `count` images: the classes in turn, evenly over each class's files.

    The same folder gives the same choice. Every class is there when `count` allows it.

    Raises:
        ExportError: No such split, a class folder that the model does not know, or fewer than 16 images.
    """
    root = data_root / split
    if not root.is_dir():
        there = (
            sorted(path.name for path in data_root.iterdir() if path.is_dir()) if data_root.is_dir() else []
        )
        raise ExportError(
            f"no reference images: {root} is not a folder; {data_root} holds {there or 'nothing'}"
        )
    index_of = {label: index for index, label in enumerate(labels)}
    files: dict[int, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            # As timm's own reader names the class of a file: the folder it lies in.
            label = path.parent.name
            if label not in index_of:
                raise ExportError(
                    f"{path}: class {label!r} is not one of the {len(labels)} that the model was trained on "
                    f"({', '.join(labels[:5])}{', …' if len(labels) > 5 else ''})"
                )
            files.setdefault(index_of[label], []).append(path)
    available = sum(len(of_class) for of_class in files.values())
    if available < MIN_IMAGES:
        raise ExportError(
            f"{root} holds {available} images; parity needs at least {MIN_IMAGES} real ones: "
            "give another --data or export.reference_split"
        )
    return _spread_over_classes(files, min(count, available))


def choose_anywhere(data_root: Path, *, split: str, labels: list[str], count: int) -> list[tuple[Path, int]]:
    """(file, class index or -1) of at most `count` images of any folder, evenly over its files.

    With a folder `split` below `data_root` only that one is taken. A file's class is the folder it lies in,
    where that is the name of one.

    Raises:
        ExportError: Fewer than 16 images.
    """
    root = data_root / split if (data_root / split).is_dir() else data_root
    index_of = {label: index for index, label in enumerate(labels)}
    files = [
        (path, index_of.get(path.parent.name, -1))
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if len(files) < MIN_IMAGES:
        raise ExportError(f"{root} holds {len(files)} images; parity needs at least {MIN_IMAGES} real ones")
    return [files[i] for i in _even_indexes(len(files), min(count, len(files)))]


def chooser(checkpoint: Checkpoint) -> Callable[..., list[tuple[Path, int]]]:
    """How the reference images of a checkpoint are chosen: by class folder, or from anywhere.

    The images of a model that was trained elsewhere need not be sorted into its classes, and those of a multi-label
    head cannot be.
    """
    anywhere = bool(checkpoint.origin) or checkpoint.model["head"] == "multi_label"
    return choose_anywhere if anywhere else choose


def _spread_over_classes(files: dict[int, list[Path]], count: int) -> list[tuple[Path, int]]:
    classes = sorted(files)
    shares = dict.fromkeys(classes, 0)
    remaining = count
    while remaining:
        # With fewer images than classes the chosen classes are spread evenly as well.
        open_classes = [index for index in classes if shares[index] < len(files[index])]
        turn = [open_classes[i] for i in _even_indexes(len(open_classes), min(remaining, len(open_classes)))]
        for index in turn:
            shares[index] += 1
        remaining -= len(turn)
    return [
        (files[index][i], index) for index in classes for i in _even_indexes(len(files[index]), shares[index])
    ]


def _even_indexes(available: int, wanted: int) -> list[int]:
    return [(2 * i + 1) * available // (2 * wanted) for i in range(wanted)]


def preprocess(
    chosen: list[tuple[Path, int]], *, data_root: Path, preprocessing: dict[str, Any]
) -> EvaluationImages:
    """Run timm's evaluation transform on each file, once to the pixels and once to the normalised tensor.

    Images are opened as timm's ImageDataset does: PIL, convert("RGB"), no EXIF rotation.

    Raises:
        ExportError: Fewer than 16 of the files decode, or timm does not take the configuration.
    """
    from PIL import Image

    to_pixels, to_images = _transforms(preprocessing)
    pixels, images, encoded, labels, paths, unreadable = [], [], [], [], [], []
    for path, label in chosen:
        data = path.read_bytes()
        name = path.relative_to(data_root).as_posix()
        try:
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # noqa: BLE001 - plugins raise struct.error, IndexError, …
            log.warning("%s does not decode, passed over: %s", path, error)
            unreadable.append(name)
            continue
        pixels.append(np.asarray(to_pixels(image)).transpose(1, 2, 0))
        images.append(np.asarray(to_images(image)).transpose(1, 2, 0))
        encoded.append(data)
        labels.append(label)
        paths.append(name)
    if len(paths) < MIN_IMAGES:
        raise ExportError(
            f"only {len(paths)} of {len(chosen)} reference images decode, {MIN_IMAGES} are needed; "
            f"the first that does not: {unreadable[0] if unreadable else '-'}"
        )
    return EvaluationImages(
        images=np.ascontiguousarray(np.stack(images), dtype=np.float32),
        pixels=np.ascontiguousarray(np.stack(pixels), dtype=np.uint8),
        encoded=tuple(encoded),
        labels=np.array(labels, dtype=np.int64),
        paths=tuple(paths),
        unreadable=tuple(unreadable),
    )


def _transforms(preprocessing: dict[str, Any]) -> tuple[Any, Any]:
    from timm.data import create_transform

    arguments = {
        "input_size": tuple(preprocessing["input_size"]),
        "is_training": False,
        "interpolation": preprocessing["interpolation"],
        "mean": tuple(preprocessing["mean"]),
        "std": tuple(preprocessing["std"]),
        "crop_pct": preprocessing["crop_pct"],
        "crop_mode": preprocessing["crop_mode"],
    }
    try:
        return create_transform(**arguments, normalize=False), create_transform(**arguments)
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise ExportError(f"timm cannot build the evaluation transform {arguments}: {error}") from error
