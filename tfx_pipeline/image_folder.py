"""An ImageFolder on disk, looked at before anything heavy starts. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.tfx_pipeline.errors import PipelineError

#: Folder names below the data root, each with one folder per class.
SPLITS = ("train", "val", "test")

#: What training takes (`training/images.py`, a test holds them equal); other files are left alone there, and so here.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def is_image(path: str) -> bool:
    """Tells whether training would read this file as an image, by its name."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def class_of(relative_path: str) -> str:
    """The class of an image: the name of the folder that holds it, as in timm."""
    return relative_path.rpartition("/")[0].rpartition("/")[2]


@dataclass(kw_only=True, frozen=True)
class ImageFolder:
    """What `inspect` saw."""

    root: Path
    """The data root."""

    num_images: dict[str, int]
    """{split: number of image files}; {"all": …} where the folder has no splits."""

    fingerprint: str
    """sha256 over name, size and modification time of every image: changes when one may have changed."""


def inspect(root: Path, *, labels: list[str], splits: tuple[str, ...] | None = SPLITS) -> ImageFolder:
    """Look at every file name below the split folders, and at no file's content.

    Args:
        root: The data root, with `train/`, `val/` and `test/`.
        labels: The model's labels. A class folder must be one of them.
        splits: Names of the split folders. None: there are none, the class folders lie in the root.

    Raises:
        PipelineError: The root, a split or its images are missing, a class folder is empty, or a class is
            unknown to the model.
    """
    if not root.is_dir():
        raise PipelineError(f"no data folder at {root}; give a folder with {', '.join(SPLITS)} inside")
    known = set(labels)
    digest = hashlib.sha256()
    num_images = {}
    for split in splits or ("all",):
        top = root / split if splits else root
        if not top.is_dir():
            raise PipelineError(
                f"{root} has no folder {split!r}; it needs {', '.join(SPLITS)}, each with one per class"
            )
        num_images[split] = 0
        for folder, images in _image_folders(top):
            _check_class_folder(folder, images, top=top, root=root, known=known, labels=labels)
            relative = folder.relative_to(root).as_posix()
            for image in images:
                state = image.stat()
                digest.update(f"{relative}/{image.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
            num_images[split] += len(images)
        if not num_images[split]:
            raise PipelineError(f"{top} holds no class folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return ImageFolder(root=root, num_images=num_images, fingerprint=digest.hexdigest())


def dataset_record(folder: ImageFolder) -> dict[str, Any]:
    """What the data set is called in the record of a run: its own dataset.json, where it has one.

    Returns:
        `name`, `source`, `digest` (of the file contents; without a dataset.json the fingerprint) and `splits`.
    """
    own = folder.root / "dataset.json"
    if own.is_file():
        described = json.loads(own.read_text(encoding="utf-8"))
        name, source, digest = described["name"], described["source"], described["digest"]
    else:
        name, source, digest = folder.root.name, str(folder.root), folder.fingerprint
    return {"name": name, "source": source, "digest": digest, "splits": folder.num_images}


def _check_class_folder(
    folder: Path,
    images: list[os.DirEntry[str]],
    *,
    top: Path,
    root: Path,
    known: set[str],
    labels: list[str],
) -> None:
    relative = folder.relative_to(root).as_posix()
    if not images:
        raise PipelineError(f"class folder {root / relative} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    if folder == top:
        raise PipelineError(f"{folder} holds images outside a class folder, for instance {images[0].name}")
    if folder.name not in known:
        raise PipelineError(
            f"class folder {root / relative} is not among the model's {len(labels)} labels "
            f"({', '.join(labels[:10])}{', …' if len(labels) > 10 else ''})"
        )


def _image_folders(top: Path) -> list[tuple[Path, list[os.DirEntry[str]]]]:
    """Every folder with images, and every leaf folder, below and including `top`, in sorted order."""
    found = []
    stack = [top]
    while stack:
        folder = stack.pop()
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        below = [Path(entry.path) for entry in entries if entry.is_dir()]
        images = [entry for entry in entries if entry.is_file() and is_image(entry.name)]
        stack.extend(reversed(below))
        if images or (not below and folder != top):
            found.append((folder, images))
    return found
