"""Where images come from: every source as items, a few hundred at a time. No TensorFlow, unless the source is TFRecord.

| source | split | label |
|---|---|---|
| folder | the folders train/, val/, test/ below the root | name of the folder that holds the image |
| CSV, Parquet | column `split` | column `label` |
| TFRecord | a folder or a word of the file's name: `train` … | `image/class/text`, `image/class/label` or `label` |
| prediction log | always `serving` | the label that the model answered |
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from isthmus.lineage.places import is_remote
from isthmus.tfx_pipeline import tfrecords
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import SPLITS, class_of, is_image
from isthmus.tfx_pipeline.listing import Listed, files_matching, open_remote, paths_below

BATCH_SIZE = 256
"""Items that travel together: Beam's cost for each element is paid once for so many images."""

SERVING = "serving"
"""Name of the split that a prediction log becomes."""

ManifestKind = Literal["csv", "parquet"]

_COLUMNS = ("path", "label")
_PARQUET_MAGIC = b"PAR1"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validation": "val", "eval": "val"}
_ENCODED = ("image/encoded", "image", "image_raw")
_LABELS = ("image/class/text", "image/class/label", "label")
_NAMES = ("image/filename", "file_name", "filename")


class Item(NamedTuple):
    """One image of a source, not yet looked at."""

    name: str
    """What reports call it."""

    label: str | int | None
    """A class' name, or its index where the source has numbers; None where the model had no answer."""

    split: str | None
    """What the source says; None where it says nothing."""

    path: str | None
    """File to read, or None."""

    encoded: bytes | None
    """The image's bytes, where the source holds them itself."""

    problem: str | None = None
    """Why there is no image to look at, although there should be one."""


Batch = list[tuple[Any, ...]]
"""Items as plain tuples (`Item._make` undoes it): Beam's coder pickles anything of another class, one by one."""


def split_named(text: str) -> str | None:
    """`train`, `val` or `test` for a name that means one of them (`validation`, `valid`, `eval`: val), else None."""
    return _SPLIT_NAMES.get(text.strip().lower())


def batched(items: Iterable[Item], size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Lists of at most `size`."""
    items = iter(items)
    while batch := [tuple(item) for item in itertools.islice(items, size)]:
        yield batch


def folder_items(root: str, *, split_folders: bool) -> Iterator[Item]:
    """The images of a folder; other files come without a label and are counted as ignored.

    Args:
        root: The folder.
        split_folders: Whether only `train`, `val` and `test` below it count; else everything does, by class.
    """
    prefix = root.rstrip("/") + "/"
    for top in (prefix + split for split in SPLITS) if split_folders else (root,):
        split = top.removeprefix(prefix) if split_folders else None
        for path in paths_below(top):
            name = path.removeprefix(prefix)
            label = class_of(name) if is_image(name) else None
            yield Item(name, label, split, path, None)


def manifest_items(manifest: str, kind: ManifestKind | None = None) -> Iterator[Item]:
    """The images that a CSV or Parquet manifest lists; its relative paths start at the folder that it is in.

    Args:
        manifest: A file, or a folder of such files as Spark writes it (`_SUCCESS` and the like are left out); columns
            that are in the names of its folders, `split=train/`, count as columns.
        kind: What its files are. None: what their names say. One that begins as only Parquet does is Parquet anyhow.

    Raises:
        PipelineError: It cannot be read as what it should be, a column is missing, a row has no path, or a split has
            another name.
    """
    folder = os.path.dirname(manifest.rstrip("/"))
    for file in _manifest_files(manifest):
        constant = _folder_columns(below_source(file, manifest))
        for number, row in enumerate(_explained(file, kind, constant), start=1):
            yield _manifest_item({**constant, **row}, at=f"{file}: row {number}", folder=folder)


def _manifest_files(manifest: str) -> list[str]:
    files = [each.path for each in files_matching(manifest)]
    if not files:
        raise PipelineError(f"no manifest at {manifest}")
    return [
        path for path in files if path == manifest or not re.search(r"(^|/)_", below_source(path, manifest))
    ]


def _rows(file: str, kind: ManifestKind | None, constant: Collection[str]) -> Iterator[dict[str, Any]]:
    parquet = kind == "parquet" or (kind is None and file.lower().endswith(".parquet"))
    if not parquet:
        with _open(file) as opened:
            parquet = opened.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    return (_parquet_rows if parquet else _csv_rows)(file, constant)


def _folder_columns(relative: str) -> dict[str, str | None]:
    """{column: value} of Hive's `column=value/` folders."""
    pairs = [part.split("=", 1) for part in relative.split("/")[:-1] if "=" in part]
    return {name: None if value == _HIVE_NULL else unquote(value) for name, value in pairs}


def _explained(file: str, kind: ManifestKind | None, constant: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows; what a reader raises becomes one line. (Arrow's errors are of these, too.)"""
    try:
        yield from _rows(file, kind, constant)
    except (ValueError, OSError, csv.Error, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise PipelineError(
            f"cannot read {file}: {reason}; a manifest is CSV in UTF-8 or Parquet, and pipeline.input.format says "
            "which where the name does not"
        ) from error


def _manifest_item(row: dict[str, Any], *, at: str, folder: str) -> Item:
    path, label, given = row["path"], row["label"], row.get("split")
    if not path:
        raise PipelineError(f"{at} has no path")
    if not isinstance(path, str):
        raise PipelineError(f"{at} has the path {path!r}, which is no text")
    split = split_named(str(given)) if given not in (None, "") else None
    if given not in (None, "") and split is None:
        raise PipelineError(f"{at} has the split {given!r}; write {', '.join(SPLITS)}")
    whole = path if is_remote(path) or os.path.isabs(path) else f"{folder}/{path}" if folder else path
    return Item(path, label if isinstance(label, int) else str(label or ""), split, whole, None)


def _csv_rows(manifest: str, constant: Collection[str]) -> Iterator[dict[str, Any]]:
    with _open(manifest) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        _check_columns(manifest, [*(reader.fieldnames or ()), *constant])
        yield from reader


def _parquet_rows(manifest: str, constant: Collection[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with _open(manifest) as file:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        _check_columns(manifest, [*names, *constant])
        columns = [name for name in (*_COLUMNS, "split") if name in names]
        for batch in table.iter_batches(batch_size=BATCH_SIZE, columns=columns):
            yield from batch.to_pylist()


def _open(path: str) -> Any:
    return open_remote(path) if is_remote(path) else open(path, "rb")


def _check_columns(manifest: str, names: Collection[str]) -> None:
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise PipelineError(
            f"{manifest} has no column {' and no column '.join(missing)}; it has {', '.join(names) or 'none'}. "
            "A manifest has path and label, and may have split"
        )


def record_files(path: str, kind: str) -> list[Listed]:
    """The complete TFRecord files of a folder or a pattern, sorted by path."""
    mark = ".tfrecord" if kind == "prediction_log" else "tfrecord"
    return [
        each
        for each in files_matching(path)
        if mark in each.path.rsplit("/", 1)[-1] and not each.path.endswith(".part")
    ]


def below_source(path: str, root: str) -> str:
    """A file's path without what every file of the source has in front.

    Args:
        path: The file's.
        root: The source: a folder, a pattern (its folders up to the first with `*` or `?` are fixed), or the file.
    """
    if path == root:
        return path.rsplit("/", 1)[-1]
    fixed = re.split(r"[*?]", root, maxsplit=1)
    folder = root.rstrip("/") if len(fixed) == 1 else fixed[0].rpartition("/")[0]
    return path.removeprefix(folder + "/")


def split_of_file(path: str, root: str) -> str | None:
    """The split that a TFRecord file's folder (below the source) or a word of its name says, if one does.

    The folders that the source lies in say nothing: `/data/test/x-*.tfrecord` is not all test images.
    """
    for part in reversed(below_source(path, root).split("/")):
        for word in re.split(r"[^A-Za-z]+", part):
            if (split := split_named(word)) is not None:
                return split
    return None


def items_of_records(file: str, *, root: str) -> Iterator[Item]:
    """The images of a TFRecord file of Examples; one without a name is called by its place in the file.

    A record that is no Example is an item with a problem, and so is the rest of a file that is damaged.

    Args:
        file: Its path.
        root: The source: the folder, pattern or file that it was found by.
    """
    from google.protobuf.message import DecodeError

    split = split_of_file(file, root)
    for name, record in _numbered(file, root):
        if isinstance(record, str):
            yield Item(name, None, split, None, None, record)
            continue
        try:
            item = record_item(record, split=split)
        except DecodeError:
            yield Item(name, None, split, None, None, "the record is no tf.train.Example")
        else:
            yield item if item.name else item._replace(name=name)


def items_of_log(file: str, *, root: str) -> Iterator[Item]:
    """The images of a file of a prediction log; what cannot be read is an item with a problem, as of a TFRecord file.

    Args:
        file: Its path.
        root: The log's folder.
    """
    from google.protobuf.message import DecodeError

    for name, record in _numbered(file, root):
        if isinstance(record, str):
            yield Item(name, None, SERVING, None, None, record)
            continue
        try:
            yield from (item._replace(name=name) for item in log_items(record))
        except DecodeError:
            problem = "the record is no tensorflow.serving.PredictionLog"
            yield Item(name, None, SERVING, None, None, problem)


def _numbered(file: str, root: str) -> Iterator[tuple[str, bytes | str]]:
    """(what reports call it, the record or what stands in its place)."""
    relative = below_source(file, root)
    for number, record in enumerate(tfrecords.read(file)):
        yield f"{relative}#{number}", record


def record_item(record: bytes, *, split: str | None) -> Item:
    """A serialized tf.train.Example as an item; without an image it has no bytes.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    import tensorflow as tf

    features = tf.train.Example.FromString(record).features.feature
    encoded = _first(features, _ENCODED)
    label, name = _first(features, _LABELS), _first(features, _NAMES)
    text = name.decode(errors="replace") if isinstance(name, bytes) else ""
    return Item(
        text,
        label.decode(errors="replace") if isinstance(label, bytes) else label,
        split,
        None,
        encoded if isinstance(encoded, bytes) else b"",
    )


def log_items(record: bytes) -> Iterator[Item]:
    """The images of one serialized tensorflow.serving.PredictionLog: of signatures that take encoded images or
    Examples. Requests with tensors hold no image files and come as one item without bytes.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog.FromString(record)
    images: list[bytes] = []
    labels: list[str] = []
    if log.HasField("predict_log"):
        inputs, outputs = log.predict_log.request.inputs, log.predict_log.response.outputs
        if "image_bytes" in inputs:
            images = [bytes(one) for one in tf.make_ndarray(inputs["image_bytes"]).reshape(-1)]
        elif "examples" in inputs:
            serialized = tf.make_ndarray(inputs["examples"]).reshape(-1)
            images = [_image_of(bytes(one)) for one in serialized]
        if "label" in outputs:
            labels = [one.decode(errors="replace") for one in tf.make_ndarray(outputs["label"]).reshape(-1)]
    elif log.HasField("classify_log"):
        for example in log.classify_log.request.input.example_list.examples:
            images.append(_image_of(example.SerializeToString()))
        answers = log.classify_log.response.result.classifications
        labels = [
            max(answer.classes, key=lambda one: one.score).label for answer in answers if answer.classes
        ]
    if not images:
        yield Item("", None, SERVING, None, None)
    for image, label in itertools.zip_longest(images, labels[: len(images)]):
        yield Item("", label, SERVING, None, image)


def _image_of(example: bytes) -> bytes:
    """The image of an Example that a server was asked with; b"", which is no image, where there is none."""
    from google.protobuf.message import DecodeError

    try:
        return record_item(example, split=SERVING).encoded or b""
    except DecodeError:
        return b""


def _first(features: Any, names: Iterable[str]) -> bytes | int | None:
    """The first value of the first of these features that has one."""
    for name in names:
        if name in features:
            feature = features[name]
            kind = feature.WhichOneof("kind")
            values = getattr(feature, kind).value if kind in ("bytes_list", "int64_list") else ()
            if values:
                return values[0] if isinstance(values[0], bytes) else int(values[0])
    return None
