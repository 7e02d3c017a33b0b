"""Images on disk, ready for every later stage: `<home>/data/<name>/{train,val,test}/<class>/*` and
dataset.json.

`prepare` is idempotent: it looks whether what is there is what the recipe asks for, and otherwise builds it
beside and renames it into place. dataset.json is written last, so a folder without it is unfinished and is
redone. Neither torch nor timm is imported here."""

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.lineage.files import staging_directory, tree_digest, write_json
from isthmus.training import imagefolder, multilabel, readers, sources
from isthmus.training.config import DataConfig
from isthmus.training.disk import no_space_is_one_line, replace_lock
from isthmus.training.errors import TrainingError
from isthmus.training.images import image_files

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
DATASET_JSON = "dataset.json"
SPLITS = imagefolder.SPLITS


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A complete data set on disk."""

    root: Path
    """Absolute; holds train/, val/, test/ and dataset.json."""

    name: str
    source: str
    classes: tuple[str, ...]
    """Sorted; a label is an index into it."""

    splits: dict[str, int]
    """Images in each split."""

    digest: str
    """isthmus.lineage.files.tree_digest over the three split folders."""

    num_quarantined: int = 0
    multi_label: bool = False
    """Whether an image may have several classes, or none."""

    reused: bool = False
    """True when it was there already."""

    def images(self, split: str) -> list[tuple[Path, Any]]:
        """(file, label) of every image of a split, sorted by path; a label is a list of them for multi-label data."""
        if self.multi_label:
            listed = json.loads((self.root / multilabel.LABELS_JSON).read_text())["files"]
            return sorted(
                (self.root / path, labels) for path, labels in listed.items() if path.startswith(f"{split}/")
            )
        return [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in image_files(self.root / split / name)
        ]


def prepare(data: DataConfig, *, home: Path) -> PreparedData:
    """Have the data set on disk under `home/data`, and say what it is. Does nothing when it is there
    already.

    Raises TrainingError in one line for a root that is missing, empty or malformed, a class without images,
    images that do not decode, a split without some class, data that cannot be found, and a full disk.
    """
    wanted = _Wanted.by(data, home=home)
    name, parent = wanted.target.name, wanted.target.parent
    with no_space_is_one_line(parent), replace_lock(parent, name):
        record = wanted.present()
        if record is not None:
            log.info("data %s: up to date, %s", name, _counts(record))
            return _prepared(wanted.target, record, reused=True)
        if wanted.target.exists():
            log.info("data %s: unfinished, or changed since; preparing it again", name)
        with _staging(parent, name) as staging:
            classes, quarantined = _fill(staging, data, wanted, downloads=parent / ".downloads")
            record = {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "source": data.source,
                "classes": list(classes),
                "multi_label": data.multi_label,
                "splits": {split: {"num_images": len(image_files(staging / split))} for split in SPLITS},
                "digest": tree_digest(staging),
                "request": wanted.request,
                "listing": _listing(staging),
                "quarantined": quarantined,
            }
            _publish(staging, wanted.target, record)
    if quarantined:
        listed = wanted.target / DATASET_JSON
        log.warning(
            "data %s: %d images do not decode and are left out, see %s", name, len(quarantined), listed
        )
    log.info("data %s: prepared %s in %s", name, _counts(record), wanted.target)
    return _prepared(wanted.target, record, reused=False)


def find(data: DataConfig, *, home: Path) -> PreparedData | None:
    """What `prepare` would find there already; None when it would have work to do. Raises as it does."""
    wanted = _Wanted.by(data, home=home)
    record = wanted.present()
    if record is None:
        return None
    log.info("data %s: up to date, %s", wanted.target.name, _counts(record))
    return _prepared(wanted.target, record, reused=True)


def load(root: Path) -> PreparedData:
    """The prepared data set in a folder, as it was left; raises TrainingError when it is unfinished."""
    record = _read(Path(root))
    if record is None:
        raise TrainingError(f"{root} is not a complete data set (no {DATASET_JSON}); run isthmus train again")
    return _prepared(Path(root).absolute(), record, reused=True)


def dataset_name(data: DataConfig) -> str:
    """The folder under `<home>/data`: the name given, or one made from the source or the root's own
    name."""
    name = data.name
    if name is None:
        name = data.root.expanduser().absolute().name if data.root is not None else data.reader or data.source
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or data.source
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise TrainingError(
            f"data.name {name!r} is not a folder name; allowed are letters, digits, . _ and -"
        )
    return name


def _check_fractions(data: DataConfig) -> None:
    if not (data.val_fraction > 0 and data.test_fraction > 0 and data.val_fraction + data.test_fraction < 1):
        raise TrainingError(
            f"data.val_fraction {data.val_fraction} and data.test_fraction {data.test_fraction} "
            f"must be above 0 and together below 1"
        )
    if data.max_per_class is not None and data.max_per_class < 1:
        raise TrainingError(f"data.max_per_class {data.max_per_class} must be at least 1")
    if data.source in ("digits", "fashion_mnist"):
        if data.root is not None:
            raise TrainingError(f"data.root {data.root} is for imagefolder and timm, not for {data.source}")
        if data.multi_label:
            raise TrainingError(
                f"data.multi_label is for imagefolder and timm; images of {data.source} have one class"
            )
    if (data.reader is not None) != (data.source == "timm"):
        raise TrainingError("data.reader and data.source: timm belong together; give both or none")
    folders = {
        "train_split": ("train",),
        "val_split": (None, *imagefolder.SPLIT_FOLDERS["val"]),
        "test_split": (None, "test"),
    }
    for key, allowed in folders.items() if data.source != "timm" else ():
        if getattr(data, key) not in allowed:
            names = ", ".join(name for name in allowed if name)
            raise TrainingError(f"data.{key} {getattr(data, key)!r}: folders of this split are named {names}")


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What the recipe asks for, and where."""

    target: Path
    root: Path | None
    """The user's own images, or what a reader wrote; None for a data set that comes as arrays."""
    folder: imagefolder.Folder | None
    """These images, listed; None for arrays and for multi-label data."""
    request: dict[str, Any]
    """As it is written into dataset.json and compared with it."""

    @classmethod
    def by(cls, data: DataConfig, *, home: Path) -> "_Wanted":
        _check_fractions(data)
        root, folder, stamp = data.root, None, None
        if data.source == "timm":
            root = readers.materialize(data, home=home)
        if data.multi_label:
            root = imagefolder.existing(root)
            stamp = multilabel.stamp(root)
        elif data.source in ("imagefolder", "timm"):
            folder = imagefolder.list_folder(
                root, class_map=data.class_map if data.source == "imagefolder" else None
            )
            root, stamp = folder.root, folder.stamp()
        request = {
            "source": data.source,
            "reader": data.reader,
            "root": str(root) if root is not None else None,
            "stamp": stamp,
            "multi_label": data.multi_label,
            "val_fraction": data.val_fraction,
            "test_fraction": data.test_fraction,
            "split_seed": data.split_seed,
            "on_corrupt": data.on_corrupt,
            "max_per_class": data.max_per_class,
        }
        target = Path(home).absolute() / "data" / dataset_name(data)
        return cls(target=target, root=root, folder=folder, request=request)

    def present(self) -> dict[str, Any] | None:
        """dataset.json when it is what is wanted and its files are still there."""
        record = _read(self.target)
        if record is None or record["request"] != self.request or record["listing"] != _listing(self.target):
            return None
        return record


def _fill(
    staging: Path, data: DataConfig, wanted: _Wanted, *, downloads: Path
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Write or link all images; returns (classes, quarantined)."""
    if data.multi_label:
        assert wanted.root is not None
        several = multilabel.plan(wanted.root, data)
        _write_multi_label(staging, several)
        return several.classes, several.quarantined
    if wanted.folder is not None:
        plan = imagefolder.plan(wanted.folder, data)
        _write_files(staging, plan, root=wanted.folder.root)
        return plan.classes, plan.quarantined
    if data.source == "digits":
        arrays = sources.digits(data)
    else:
        arrays = sources.fashion_mnist(data, download_to=downloads)
    _write_arrays(staging, arrays, max_per_class=data.max_per_class)
    return arrays.classes, []


def _write_arrays(staging: Path, arrays: sources.Arrays, *, max_per_class: int | None) -> None:
    """One grey PNG an image, named after its number in the original data set."""
    from PIL import Image
    from tqdm import tqdm

    counts: dict[tuple[str, str], int] = {}
    for split, indices in arrays.splits.items():
        for index in tqdm(indices, desc=f"writing {split}", unit="img", file=sys.stderr, disable=None):
            name = arrays.classes[arrays.labels[index]]
            counts[split, name] = counts.get((split, name), 0) + 1
            if max_per_class is not None and counts[split, name] > max_per_class:
                continue
            folder = staging / split / name
            if counts[split, name] == 1:
                folder.mkdir(parents=True)
            Image.fromarray(arrays.images[index]).save(folder / f"{index:05d}.png", compress_level=1)


def _write_files(staging: Path, plan: imagefolder.Plan, *, root: Path) -> None:
    """Link each file under its class; folders below the class become part of the name."""
    for split, by_class in plan.files.items():
        for name, paths in by_class.items():
            folder = staging / split / name
            folder.mkdir(parents=True)
            for path in paths:
                inside = path.relative_to(root).parts
                flat = "__".join(inside[inside.index(name) + 1 :])
                if (folder / flat).is_symlink() or (folder / flat).exists():
                    flat = (
                        f"{Path(flat).stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}{path.suffix}"
                    )
                imagefolder.link(path, folder / flat)


def _write_multi_label(staging: Path, plan: multilabel.MultiLabelPlan) -> None:
    """Link each file below its split, and write which classes it has."""
    labels: dict[str, list[int]] = {}
    for split, files in plan.files.items():
        (staging / split).mkdir(parents=True)
        for path, indices in files:
            flat = "__".join(path.relative_to(plan.root).parts)
            imagefolder.link(path, staging / split / flat)
            labels[f"{split}/{flat}"] = indices
    write_json(staging / multilabel.LABELS_JSON, {"classes": list(plan.classes), "files": labels})


def _publish(staging: Path, target: Path, record: dict[str, Any]) -> None:
    """dataset.json last, then the rename; an older version is moved away first.

    Nothing is synced to the disk file by file (minutes for 70,000 of them): what a power cut takes away
    shows in the listing of sizes, and is prepared again.
    """
    write_json(staging / DATASET_JSON, record)
    old = target.parent / f".{target.name}.old-{record['digest'][:8]}"
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _listing(root: Path) -> str:
    """Changes when a file in the split folders comes, goes or gets another size."""
    lines = [
        f"{path.relative_to(root)}\0{path.stat().st_size}\n"
        for split in SPLITS
        if (root / split).is_dir()
        for path in (root / split).rglob("*")
        if path.is_file()
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _read(root: Path) -> dict[str, Any] | None:
    """dataset.json of a complete data set; None when there is none, or one of another schema."""
    try:
        record = json.loads((root / DATASET_JSON).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return None
    return record


def _prepared(root: Path, record: dict[str, Any], *, reused: bool) -> PreparedData:
    return PreparedData(
        root=root,
        name=record["name"],
        source=record["source"],
        classes=tuple(record["classes"]),
        splits={split: record["splits"][split]["num_images"] for split in SPLITS},
        digest=record["digest"],
        num_quarantined=len(record["quarantined"]),
        multi_label=bool(record.get("multi_label")),
        reused=reused,
    )


def _counts(record: dict[str, Any]) -> str:
    counts = ", ".join(f"{record['splits'][split]['num_images']} {split}" for split in SPLITS)
    return f"{counts} images of {len(record['classes'])} classes, digest {record['digest'][:12]}"


@contextmanager
def _staging(parent: Path, name: str) -> Iterator[Path]:
    """A fresh folder beside the target; what a killed preparation of the same name left is removed
    first."""
    for leftover in (*parent.glob(f".{name}.old-*"), parent / f".{name}.new"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with staging_directory(parent / f".{name}.new") as staging:
            yield staging
    finally:
        shutil.rmtree(parent / f".{name}.new", ignore_errors=True)
