"""What batch prediction reads: a folder of images or TFRecords of Examples, cut into shards once and for all.

The same data gives the same shards, whenever and wherever it is looked at: that is what makes a second run able to
tell what the first has finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isthmus.lineage.files import canonical_json, sha256_text
from isthmus.tfx_pipeline import remote, tfrecords
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import is_image

_RECORD_MARKS = ("tfrecord",)
_RECORD_SUFFIXES = (".gz", ".tfrecord", ".tfrecords")


@dataclass(kw_only=True, frozen=True)
class Shard:
    """A piece of the input, and of the output: one Parquet file."""

    number: int
    """From 0."""

    root: str
    """The folder that `files` are relative to."""

    files: tuple[str, ...]
    """Images, or one file of records."""

    records: bool
    """Whether `files` holds Examples (features `image/encoded` and, as a name, `image/filename`)."""

    def images(self) -> Iterator[tuple[str, bytes | str]]:
        """(path, the encoded image), in order; in place of bytes that cannot be read, a text that says why."""
        return self._records() if self.records else map(self._image, self.files)

    def _image(self, name: str) -> tuple[str, bytes | str]:
        try:
            return name, _read(remote.join(self.root, name))
        except (OSError, PipelineError) as error:
            return name, f"cannot be read: {error}"

    def _records(self) -> Iterator[tuple[str, bytes | str]]:
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        (name,) = self.files
        for number, record in enumerate(tfrecords.read(remote.join(self.root, name))):
            numbered = f"{name}#{number}"
            if isinstance(record, str):
                yield numbered, record
                return
            try:
                features = tf.train.Example.FromString(record).features.feature
            except DecodeError:
                yield numbered, "the record is no tf.train.Example"
                continue
            named = features["image/filename"].bytes_list.value
            encoded = features["image/encoded"].bytes_list.value
            path = named[0].decode(errors="replace") if named else numbered
            yield path, encoded[0] if encoded else "the record has no image/encoded"


@dataclass(kw_only=True, frozen=True)
class Inputs:
    """All shards of the data."""

    shards: tuple[Shard, ...]

    fingerprint: str
    """Changes with any file's name, size or time, and with the cut."""


def find(data: str, *, shard_size: int) -> Inputs:
    """Look at the data and cut it: images into shards of `shard_size`, TFRecords into one shard a file.

    Args:
        data: A folder of images (any depth), a TFRecord file, or a folder of TFRecord files such as
            `Split-test` of an Examples artifact; local, or anything that Beam opens.
        shard_size: Images in a shard.

    Raises:
        PipelineError: There is no such place, or neither images nor records are in it.
    """
    root, found = _files(data)
    images = [one for one in found if is_image(one[0])]
    records = [one for one in found if _is_records(one[0])]
    if images and records:
        raise PipelineError(f"{data} holds images and TFRecords; name a folder with either")
    if not found or not (images or records):
        raise PipelineError(
            f"no images and no TFRecords in {data}; give a folder of images, a TFRecord file or a folder of those"
        )
    chosen = images or records
    names = [name for name, *_ in chosen]
    cuts = [tuple(cut) for cut in _cut(names, shard_size if images else 1)]
    shards = tuple(
        Shard(number=number, root=root, files=files, records=not images) for number, files in enumerate(cuts)
    )
    return Inputs(shards=shards, fingerprint=sha256_text(canonical_json([chosen, [len(c) for c in cuts]])))


def _cut(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _is_records(name: str) -> bool:
    base = name.rsplit("/", maxsplit=1)[-1]
    return base.endswith(_RECORD_SUFFIXES) or any(mark in base for mark in _RECORD_MARKS)


def _files(data: str) -> tuple[str, list[tuple[str, int, float]]]:
    """(root, sorted [(path relative to it, bytes, time of the last change)]) of a file or a folder."""
    place = data if remote.is_remote(data) else str(Path(data).absolute())
    single = remote.exists(place) if remote.is_remote(place) else Path(place).is_file()
    root, name = place.rsplit("/", maxsplit=1) if single else (place.rstrip("/"), None)
    found = [(entry.name, entry.num_bytes, entry.updated) for entry in remote.files(root)]
    return root, [one for one in found if name in (None, one[0])]


def _read(path: str) -> bytes:
    return remote.read_bytes(path) if remote.is_remote(path) else Path(path).read_bytes()
