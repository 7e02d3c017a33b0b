"""Looking at where images come from, before anything heavy starts: which span, which kind, how many, and a fingerprint.

No image is opened. A local folder is checked class by class; a manifest is read through; of TFRecord files and
prediction logs only the files are looked at.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isthmus.lineage.places import is_remote
from isthmus.tfx_pipeline import image_folder, listing
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import SPLITS
from isthmus.tfx_pipeline.image_items import ManifestKind, manifest_items, record_files, split_of_file
from isthmus.tfx_pipeline.listing import Listed
from isthmus.tfx_pipeline.spans import absolute, resolve

#: Without training's own data configuration beside it; a test holds them equal to training's.
VAL_FRACTION, TEST_FRACTION, SPLIT_SEED = 0.1, 0.2, 0

_UNKNOWN_SPLIT = "all"


@dataclass(kw_only=True, frozen=True)
class Source:
    """What `look` saw."""

    pattern: str
    """The path, with its `{SPAN}` and `{VERSION}`."""

    path: str
    """The path with both filled in."""

    kind: str
    """`folder`, `tfrecord`, `csv`, `parquet` or `prediction_log`."""

    by_hash: bool = False
    """Whether content decides the split."""

    span: int | None = None
    """None where the pattern has none, and where each run takes the latest (see `cluster_inputs`)."""

    version: int | None = None
    """As `span`."""

    class_map: dict[str, int] = field(default_factory=dict)
    """{name in the source: index of the model's output}."""

    val_fraction: float = VAL_FRACTION
    test_fraction: float = TEST_FRACTION
    split_seed: int = SPLIT_SEED

    num_images: dict[str, int] = field(default_factory=dict)
    """{split: number of images}, or {"all": …} where the split comes later; empty where only reading tells."""

    fingerprint: str = ""
    """sha256 over name, size and modification time of every file: changes when an image may have changed."""

    def properties(self) -> dict[str, Any]:
        """What ImageExampleGen has to know besides the path, as JSON values."""
        return {
            "kind": self.kind,
            "by_hash": self.by_hash,
            "span": self.span,
            "version": self.version,
            "val_fraction": self.val_fraction,
            "test_fraction": self.test_fraction,
            "split_seed": self.split_seed,
        }

    def counts(self) -> str:
        """The number of images, for a person; "" where only reading tells."""
        if not self.num_images:
            return ""
        if list(self.num_images) == [_UNKNOWN_SPLIT]:
            return f"{self.num_images[_UNKNOWN_SPLIT]} images, split by content"
        return ", ".join(f"{count} {split}" for split, count in self.num_images.items())

    def record(self) -> dict[str, Any]:
        """What the data set is called in the record of a run: its own dataset.json, where it has one.

        Returns:
            `name`, `source`, `digest` (of the file contents; without a dataset.json the fingerprint) and `splits`.
        """
        if self.kind == "folder" and not is_remote(self.path):
            folder = image_folder.ImageFolder(
                root=Path(self.path), num_images=self.num_images, fingerprint=self.fingerprint
            )
            return image_folder.dataset_record(folder)
        return {
            "name": os.path.basename(self.path.rstrip("/")),
            "source": self.path,
            "digest": self.fingerprint,
            "splits": self.num_images,
        }


def look(
    config: InputConfig, *, data_root: Path | None, labels: list[str], beam_args: Iterable[str] = ()
) -> Source:
    """Look at the pipeline's input.

    Args:
        config: The recipe's `pipeline.input`.
        data_root: The folder that training prepared, for when `config.path` is None.
        labels: The model's labels.
        beam_args: Beam's options, for the endpoints of object stores.

    Raises:
        PipelineError: Nothing is there, or it cannot be what it should be; the text says what to do.
    """
    if config.path is None and data_root is None:
        raise PipelineError("no images: give pipeline.input.path, or a data set that training prepared")
    pattern = absolute(config.path or str(data_root))
    if is_remote(pattern):
        listing.connect(beam_args)
    found = resolve(pattern, span=config.span, version=config.version)
    kind = _kind(found.path) if config.format == "auto" else config.format
    class_map = {} if config.class_map is None else read_class_map(config.class_map, num_classes=len(labels))
    by_hash, num_images, fingerprint = _LOOKS[kind](found.path, config.splits, [*labels, *class_map])
    return Source(
        pattern=pattern,
        path=found.path,
        kind=kind,
        by_hash=by_hash,
        span=found.span if "{SPAN" in pattern or "{YYYY}" in pattern else None,
        version=found.version if "{VERSION" in pattern else None,
        class_map=class_map,
        val_fraction=VAL_FRACTION if config.val_fraction is None else config.val_fraction,
        test_fraction=TEST_FRACTION if config.test_fraction is None else config.test_fraction,
        split_seed=SPLIT_SEED if config.split_seed is None else config.split_seed,
        num_images=num_images,
        fingerprint=fingerprint,
    )


def look_at_log(folder: str, *, beam_args: Iterable[str] = ()) -> Source:
    """Look at a server's prediction log.

    Raises:
        PipelineError: It holds no complete file yet.
    """
    path = absolute(folder)
    if is_remote(path):
        listing.connect(beam_args)
    elif not os.path.isdir(path):
        raise PipelineError(
            f"no prediction log at {path}; start the server with --prediction_log={path}, "
            "or leave pipeline.data.skew.prediction_log out"
        )
    files = record_files(path, "prediction_log")
    if not files:
        raise PipelineError(
            f"the prediction log {path} holds no complete file (*.tfrecord) yet; "
            "a file is complete after ten minutes, or when the server ends"
        )
    return Source(
        pattern=path, path=path, kind="prediction_log", fingerprint=listing.fingerprint(files, root=path)
    )


def read_class_map(path: Path, *, num_classes: int) -> dict[str, int]:
    """timm's class map: {name in the source: index of the model's output}.

    Args:
        path: Text with one name a line, or JSON: a list of names or {name: index}.
        num_classes: Of the model.

    Raises:
        PipelineError: There is no such file, or it is not such a map.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise PipelineError(f"cannot read the class map {path}: {error}") from error
    if isinstance(value, list):
        value = {str(name).strip(): index for index, name in enumerate(value) if str(name).strip()}
    if not isinstance(value, dict) or not all(type(index) is int for index in value.values()):
        raise PipelineError(f"{path} is no class map: give one name a line, or JSON with names and indices")
    wrong = {name: index for name, index in value.items() if not 0 <= index < num_classes}
    if wrong:
        name, index = next(iter(wrong.items()))
        raise PipelineError(
            f"{path} gives {name} the index {index}; the model has {num_classes} classes, 0 to {num_classes - 1}"
        )
    return value


def _kind(path: str) -> str:
    name = path.rstrip("/").rsplit("/", 1)[-1].lower()
    for ending in ("csv", "parquet"):
        if name.endswith("." + ending):
            return ending
    return "tfrecord" if "tfrecord" in name else "folder"


Look = tuple[bool, dict[str, int], str]
"""(whether content decides the split, {split: images}, fingerprint)"""


def _look_at_folder(path: str, splits: str, known: list[str]) -> Look:
    if is_remote(path):
        return _look_at_remote_folder(path, splits)
    root = Path(path)
    own = splits == "own" or (splits == "auto" and any((root / split).is_dir() for split in SPLITS))
    if not own and splits == "auto" and root.is_dir() and not any(e.is_dir() for e in root.iterdir()):
        own = True  # Nothing to split either: say what a folder needs.
    folder = image_folder.inspect(root, labels=known, splits=SPLITS if own else None)
    return not own, folder.num_images, folder.fingerprint


def _look_at_remote_folder(path: str, splits: str) -> Look:
    prefix = path.rstrip("/") + "/"
    files = [file for file in listing.files_below(path) if image_folder.is_image(file.path)]
    if not files:
        raise PipelineError(f"no images below {path} ({', '.join(image_folder.IMAGE_SUFFIXES)})")
    tops = [file.path.removeprefix(prefix).split("/", 1)[0] for file in files]
    own = splits == "own" or (splits == "auto" and any(top in SPLITS for top in tops))
    fingerprint = listing.fingerprint(files, root=prefix)
    if not own:
        return True, {_UNKNOWN_SPLIT: len(files)}, fingerprint
    counts = {split: tops.count(split) for split in SPLITS}
    _all_splits(counts, path)
    return False, counts, fingerprint


def _look_at_manifest(path: str, splits: str, known: list[str], *, kind: ManifestKind) -> Look:  # noqa: ARG001
    manifests = listing.files_matching(path)
    if not manifests:
        raise PipelineError(f"no manifest at {path}")
    items = list(manifest_items(path, kind))
    if not items:
        raise PipelineError(f"the manifest {path} lists no image")
    with_split = [item.split for item in items if item.split is not None]
    own = splits == "own" or (splits == "auto" and bool(with_split))
    files = _stat([item.path for item in items if item.path is not None])
    fingerprint = listing.fingerprint([*manifests, *files], root="")
    if not own:
        return True, {_UNKNOWN_SPLIT: len(items)}, fingerprint
    if len(with_split) < len(items):
        first = next(item.name for item in items if item.split is None)
        raise PipelineError(
            f"{len(items) - len(with_split)} of the {len(items)} images of {path} have no split, for instance "
            f"{first}; fill the column, or set pipeline.input.splits to hash"
        )
    counts = {split: with_split.count(split) for split in SPLITS}
    _all_splits(counts, path)
    return False, counts, fingerprint


def _stat(paths: list[str]) -> list[Listed]:
    """Size and time of every file; what is not there has neither, and is found when it is read."""
    remote = {path for path in paths if is_remote(path)}
    known: dict[str, Listed] = {}
    for folder in {path.rsplit("/", 1)[0] for path in remote}:
        known |= {file.path: file for file in listing.files_below(folder)}
    found = []
    for path in paths:
        if path in remote:
            found.append(known.get(path, Listed(path, -1, 0.0)))
            continue
        try:
            state = os.stat(path)
            found.append(Listed(path, state.st_size, state.st_mtime))
        except OSError:
            found.append(Listed(path, -1, 0.0))
    return found


def _look_at_records(path: str, splits: str, known: list[str]) -> Look:  # noqa: ARG001
    files = record_files(path, "tfrecord") if is_remote(path) or _exists(path) else []
    if not files:
        raise PipelineError(
            f"no TFRecord files at {path}: give a folder or a pattern; the files' names hold 'tfrecord'"
        )
    of_files = [split_of_file(file.path, path) for file in files]
    own = splits == "own" or (splits == "auto" and any(of_files))
    if own:
        _all_splits({split: of_files.count(split) for split in SPLITS}, path)
        if None in of_files:
            raise PipelineError(
                f"{files[of_files.index(None)].path} names no split ({', '.join(SPLITS)}); "
                "rename it, or set pipeline.input.splits to hash"
            )
    return not own, {}, listing.fingerprint(files, root="")


def _exists(path: str) -> bool:
    return os.path.isdir(path) or os.path.isdir(os.path.dirname(path))


def _all_splits(counts: dict[str, int], path: str) -> None:
    missing = [split for split, count in counts.items() if not count]
    if missing:
        raise PipelineError(
            f"{path} has nothing for {', '.join(missing)}; it needs {', '.join(SPLITS)}, "
            "or set pipeline.input.splits to hash"
        )


_LOOKS: dict[str, Callable[[str, str, list[str]], Look]] = {
    "folder": _look_at_folder,
    "csv": functools.partial(_look_at_manifest, kind="csv"),
    "parquet": functools.partial(_look_at_manifest, kind="parquet"),
    "tfrecord": _look_at_records,
}
