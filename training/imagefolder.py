"""The user's own folder: what is in it, what is wrong with it, and which image goes to which split. No
torch."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.lineage.splits import position_of, split_of
from isthmus.training.config import DataConfig
from isthmus.training.errors import TrainingError
from isthmus.training.images import SUFFIXES, Inspected, image_files, inspect

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A listed root: image files by split and class; only `train` where the root has no splits of its
    own."""

    root: Path
    files: dict[str, dict[str, list[Path]]]

    def stamp(self) -> str:
        """Changes when a file comes, goes, or gets another size or modification time; costs one stat a
        file."""
        lines = []
        for split, by_class in self.files.items():
            for paths in by_class.values():
                for path in paths:
                    stat = path.stat()
                    lines.append(
                        f"{split}\0{path.relative_to(self.root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
                    )
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@dataclass(kw_only=True)
class Plan:
    """Which file becomes which image of the prepared data set."""

    classes: tuple[str, ...]
    files: dict[str, dict[str, list[Path]]]
    """split -> class -> source files."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """{"path", "error"} of images left out."""


def list_folder(root: Path | None, *, class_map: Path | None = None) -> Folder:
    """List a root and check everything that needs no decoding. Raises TrainingError in one line.

    `class_map` is timm's: the names of the classes, one a line; the folders must be these.
    """
    root = existing(root)
    own = {
        split: root / name
        for split, names in SPLIT_FOLDERS.items()
        for name in reversed(names)
        if (root / name).is_dir()
    }
    if own and "train" not in own:
        raise TrainingError(
            f"{root} has {' and '.join(path.name + '/' for path in own.values())} but no train/; "
            f"give train/<class>/, or <class>/ folders directly and no split folders"
        )
    files = {split: _list_classes(folder) for split, folder in (own or {"train": root}).items()}
    _check_classes(root, files)
    if class_map is not None:
        _check_class_map(class_map, sorted(files["train"]))
    return Folder(root=root, files=files)


def existing(root: Path | None) -> Path:
    """The absolute root; raises TrainingError when it is not given or no folder."""
    if root is None:
        raise TrainingError(
            "data.root is missing: the source imagefolder needs the folder that holds your images"
        )
    root = root.expanduser().absolute()
    if not root.exists():
        raise TrainingError(f"data.root {root} does not exist; give the folder that holds your images")
    if not root.is_dir():
        raise TrainingError(f"data.root {root} is a file; give the folder that holds your images")
    return root


def _check_class_map(file: Path, classes: Sequence[str]) -> None:
    """timm numbers classes by this file; here they are numbered by name, so it has to hold the same ones in order."""
    try:
        names = [
            line.strip()
            for line in file.expanduser().read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as problem:
        raise TrainingError(f"data.class_map {file} cannot be read: {problem}") from problem
    if set(names) != set(classes):
        differing = sorted(set(names) ^ set(classes))
        raise TrainingError(
            f"data.class_map {file} and the folders differ in {len(differing)} classes: {_some(differing)}"
        )
    if names != list(classes):
        raise TrainingError(
            f"data.class_map {file} does not number the classes by name, as folders are here; the served label is "
            f"the name, so leave the map out"
        )


def plan(folder: Folder, data: DataConfig) -> Plan:
    """Decode every image, put the corrupt ones aside (or fail), carve the missing splits, check every
    class."""
    paths = [path for by_class in folder.files.values() for listed in by_class.values() for path in listed]
    inspected = {each.path: each for each in inspect(paths, label="checking images")}
    corrupt = [each for each in inspected.values() if each.error is not None]
    if corrupt and data.on_corrupt == "fail":
        raise TrainingError(
            f"{len(corrupt)} of {len(paths)} images cannot be decoded: {_some(list(map(_broken, corrupt)))}; "
            f"mend or remove them, or set data.on_corrupt: quarantine to train without them"
        )
    whole = {
        split: {
            name: [inspected[path] for path in listed if inspected[path].error is None]
            for name, listed in by_class.items()
        }
        for split, by_class in folder.files.items()
    }
    classes = tuple(sorted(whole["train"]))
    split_files = _carve(whole, data)
    _check_every_split(split_files, classes)
    if data.max_per_class is not None:
        split_files = {
            split: {name: found[: data.max_per_class] for name, found in by_class.items()}
            for split, by_class in split_files.items()
        }
    return Plan(
        classes=classes,
        files={
            split: {name: [each.path for each in found] for name, found in by_class.items()}
            for split, by_class in split_files.items()
        },
        quarantined=[{"path": str(each.path), "error": str(each.error)} for each in corrupt],
    )


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """{class: image files} of a split folder."""
    class_folders = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    loose = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    allowed = " ".join(sorted(SUFFIXES))
    if loose:
        raise TrainingError(
            f"{len(loose)} images lie directly in {folder} (first: {min(loose).name}); "
            f"put each into a folder named after its class, {folder.name}/<class>/{min(loose).name}"
        )
    if not class_folders:
        raise TrainingError(f"{folder} is empty: it needs one folder per class with images in it ({allowed})")
    found = {path.name: image_files(path) for path in class_folders}
    empty = [str(folder / name) for name, files in found.items() if not files]
    if empty:
        raise TrainingError(
            f"{'a class folder' if len(empty) == 1 else f'{len(empty)} class folders'} without images: "
            f"{_some(empty)}; add images ({allowed}) or remove the folder"
        )
    return found


def _check_classes(root: Path, files: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
    classes = set(files["train"])
    if len(classes) < 2:
        raise TrainingError(f"{root} has one class only ({min(classes)}); a classifier needs at least two")
    for split in files:
        unknown = sorted(set(files[split]) - classes)
        if unknown:
            raise TrainingError(f"{root}: {split} has classes that train has not: {_some(unknown)}")


def _check_every_split(
    files: Mapping[str, Mapping[str, Sequence[Inspected]]], classes: Sequence[str]
) -> None:
    for split in SPLITS:
        missing = [name for name in classes if not files[split].get(name)]
        if missing:
            raise TrainingError(
                f"the {split} split has no image of class {_some(missing)} "
                f"(it has {len(classes) - len(missing)} of {len(classes)} classes); "
                f"add at least one image of each"
            )


def _carve(
    whole: dict[str, dict[str, list[Inspected]]], data: DataConfig
) -> dict[str, dict[str, list[Inspected]]]:
    """Take the splits that the root does not have out of train, by content.

    A class so small that chance leaves one of its splits empty gives it an image of its largest split.
    """
    missing = [split for split in SPLITS if split not in whole]
    if not missing:
        return whole
    result: dict[str, dict[str, list[Inspected]]] = {split: {} for split in SPLITS} | {
        split: by_class for split, by_class in whole.items() if split != "train"
    }
    for name, found in whole["train"].items():
        by_content: dict[str, list[Inspected]] = defaultdict(list)
        for each in found:
            by_content[each.sha256].append(each)
        if len(by_content) <= len(missing):
            raise TrainingError(
                f"class {name} has {len(by_content)} different image(s); carving {' and '.join(missing)} "
                f"out of train needs at least {len(missing) + 1}"
            )
        assigned = _assign(list(by_content), missing=missing, data=data)
        for split in ("train", *missing):
            result[split][name] = [
                each for sha256, copies in by_content.items() if assigned[sha256] == split for each in copies
            ]
    return result


def _assign(contents: Sequence[str], *, missing: Sequence[str], data: DataConfig) -> dict[str, str]:
    """{content hash: split} for one class, none of train and the missing splits empty."""
    fractions = {
        "val_fraction": data.val_fraction if "val" in missing else 0.0,
        "test_fraction": data.test_fraction if "test" in missing else 0.0,
    }
    order = sorted(contents, key=lambda sha256: position_of(sha256, seed=data.split_seed))
    assigned = {sha256: split_of(sha256, seed=data.split_seed, **fractions) for sha256 in order}
    for split in (*missing, "train"):
        if split not in assigned.values():
            counts = {other: list(assigned.values()).count(other) for other in ("train", *missing)}
            largest = max(counts, key=lambda other: counts[other])
            assigned[next(sha256 for sha256 in order if assigned[sha256] == largest)] = split
    return assigned


def _broken(each: Inspected) -> str:
    return f"{each.path} ({each.error})"


def _some(names: Sequence[str], *, most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def link(source: Path, target: Path) -> None:
    """A hard link, which costs no space and outlives the original; where that is refused, a symbolic link.

    Hard links are refused across file systems and, on many systems, on files of another owner.
    """
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source, target)
