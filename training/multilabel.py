"""Images that may have several classes, or none: which file has which, and which split it belongs to. No torch.

A folder says it in `labels.csv` with the columns path and labels (names with `;` between them), and a column split
where the data set has splits of its own.
"""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.lineage.splits import split_of
from isthmus.training.config import DataConfig
from isthmus.training.errors import TrainingError
from isthmus.training.imagefolder import SPLIT_FOLDERS, SPLITS
from isthmus.training.images import inspect

LABELS_CSV = "labels.csv"
LABELS_JSON = "labels.json"
MOST_NAMED = 3


@dataclass(kw_only=True)
class MultiLabelPlan:
    """Which file becomes which image of the prepared data set."""

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, list[int]]]]
    """split -> (file, class indices)."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """{"path", "error"} of images left out."""


@dataclass(frozen=True, kw_only=True)
class _Listed:
    path: Path
    classes: tuple[str, ...]
    split: str | None


def stamp(root: Path) -> str:
    """Changes when the list of labels does, or a file that it names."""
    import hashlib

    lines = []
    for each in _read(root):
        stat = each.path.stat()
        lines.append(f"{each.path}\0{each.classes}\0{each.split}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def plan(root: Path, data: DataConfig) -> MultiLabelPlan:
    """Decode every image and give it a split: its own, or one by its content.

    Raises TrainingError for a missing or malformed list, files that are not there or do not decode, and a split or a
    class without images.
    """
    listed = _read(root)
    inspected = {each.path: each for each in inspect([each.path for each in listed], label="checking images")}
    corrupt = [each for each in inspected.values() if each.error is not None]
    if corrupt and data.on_corrupt == "fail":
        raise TrainingError(
            f"{len(corrupt)} of {len(listed)} images cannot be decoded: {_some([str(each.path) for each in corrupt])}; "
            f"mend or remove them, or set data.on_corrupt: quarantine to train without them"
        )
    classes = tuple(sorted({name for each in listed for name in each.classes}))
    index_of = {name: index for index, name in enumerate(classes)}
    own = {each.split for each in listed} - {None}
    fractions = {
        "val_fraction": 0.0 if "val" in own else data.val_fraction,
        "test_fraction": 0.0 if "test" in own else data.test_fraction,
    }
    files: dict[str, list[tuple[Path, list[int]]]] = {split: [] for split in SPLITS}
    for each in listed:
        looked = inspected[each.path]
        if looked.error is not None:
            continue
        split = each.split or "train"
        if split == "train":
            split = split_of(looked.sha256, seed=data.split_seed, **fractions)
        files[split].append((each.path, sorted(index_of[name] for name in each.classes)))
    _check(root, files, classes)
    return MultiLabelPlan(
        root=root,
        classes=classes,
        files=files,
        quarantined=[{"path": str(each.path), "error": str(each.error)} for each in corrupt],
    )


def _read(root: Path) -> list[_Listed]:
    if (root / LABELS_JSON).is_file():
        content = json.loads((root / LABELS_JSON).read_text())
        names = content["classes"]
        return [
            _Listed(
                path=root / path,
                classes=tuple(names[index] for index in indices),
                split=path.partition("/")[0],
            )
            for path, indices in content["files"].items()
        ]
    file = root / LABELS_CSV
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
    except OSError as problem:
        raise TrainingError(
            f"data.multi_label needs {file} with the columns path and labels: {problem.strerror}"
        ) from problem
    if not rows or not {"path", "labels"} <= set(rows[0]):
        raise TrainingError(f"{file} needs the columns path and labels (names with ; between them), and rows")
    split_of_name = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    listed = []
    for number, row in enumerate(rows, start=2):
        split = (row.get("split") or "").strip() or None
        if split is not None and split not in split_of_name:
            raise TrainingError(
                f"{file}, line {number}: split {split!r} is unknown; allowed: {', '.join(split_of_name)}"
            )
        names = tuple(sorted({name.strip() for name in (row["labels"] or "").split(";")} - {""}))
        listed.append(
            _Listed(path=root / row["path"], classes=names, split=split_of_name[split] if split else None)
        )
    missing = [str(each.path) for each in listed if not each.path.is_file()]
    if missing:
        raise TrainingError(f"{file} names {len(missing)} files that are not there: {_some(missing)}")
    return listed


def _check(root: Path, files: dict[str, list[tuple[Path, list[int]]]], classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise TrainingError(f"{root} names {len(classes)} classes; a classifier needs at least two")
    for split, of_split in files.items():
        if not of_split:
            raise TrainingError(
                f"{root}: the {split} split has no image; raise data.{split}_fraction, or add images"
            )
    counts: dict[int, int] = defaultdict(int)
    for _, indices in files["train"]:
        for index in indices:
            counts[index] += 1
    missing = [name for index, name in enumerate(classes) if not counts[index]]
    if missing:
        raise TrainingError(
            f"the train split has no image of class {_some(missing)}; add at least one of each"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
