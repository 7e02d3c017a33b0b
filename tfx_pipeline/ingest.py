"""The Beam part of ImageExampleGen: items in, Examples and what there is to report out. Workers import no TensorFlow.

Nothing is held in memory that grows with the images but their names and digests: those travel, a few hundred at a
time, and the files' bytes are read, measured and written by one worker, chunk by chunk. What is counted is counted as
data and not with Beam's metrics, which count the work of a worker that died half way twice.
"""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from isthmus.lineage.splits import split_of
from isthmus.tfx_pipeline import image_items
from isthmus.tfx_pipeline.example_bytes import example_bytes
from isthmus.tfx_pipeline.image_features import Measured, measured
from isthmus.tfx_pipeline.image_items import SERVING, Batch, Item
from isthmus.tfx_pipeline.listing import read_bytes

MAX_LISTED = 1000
"""Of each kind of finding, this many are listed by name; all are counted."""

_MAX_COPIES_NAMED = 10
_RECORD_BATCH = 32
# Digests are grouped by their first bits, so that a group fits into a worker and Beam moves few elements.
_DIGEST_GROUPS = 64

COUNTS, REJECTED, DIGESTS = "counts", "rejected", "digests"
Digest = tuple[bytes, str, int, str]
"""(sha256, split, label's index, name)"""


@dataclass(kw_only=True, frozen=True)
class Rules:
    """What becomes of an item: its class and its split."""

    labels: list[str]
    """The model's labels; a class' index in them is its `image/class/label`."""

    class_map: dict[str, int] = field(default_factory=dict)
    """{name in the source: index}, where the source calls classes otherwise."""

    by_hash: bool = False
    """Whether the content decides the split, and not the source."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0

    def class_of(self, label: str | int | None) -> int | None:
        """The index of a source's label; None for one that the model does not know.

        A word is looked up in the class map and the labels; a number is an index.
        """
        if isinstance(label, str):
            index = self.class_map.get(label)
            if index is None:
                index = self._by_name.get(label)
            if index is None and label.isdecimal() and not self._numeric_names:
                index = int(label)
        else:
            index = label
        return index if index is not None and 0 <= index < len(self.labels) else None

    @functools.cached_property
    def _by_name(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    @functools.cached_property
    def _numeric_names(self) -> bool:
        return any(label.isdecimal() for label in self.labels)

    def split_of(self, item: Item, sha256: bytes) -> str | None:
        """The split of an image, or None where the source has none for it."""
        if not self.by_hash or item.split == SERVING:
            return item.split
        return split_of(
            sha256.hex(),
            seed=self.split_seed,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
        )


def examples_and_findings(
    pipeline: beam.Pipeline, *, path: str, kind: str, rules: Rules, splits: list[str]
) -> tuple[dict[str, Any], Any]:
    """Add the reading and measuring of a source to a Beam pipeline.

    Args:
        pipeline: To add to.
        path: The source.
        kind: `folder`, `csv`, `parquet`, `tfrecord` or `prediction_log`.
        rules: For labels and splits.
        splits: Names of the splits that may come out.

    Returns:
        ({split: serialized Examples}, lines of JSON for `Findings`).
    """
    outputs = _batches(pipeline, path, kind, by_hash=rules.by_hash) | "Measure" >> beam.ParDo(
        _ToExamples(rules, splits)
    ).with_outputs(COUNTS, REJECTED, DIGESTS, *splits)
    rejected = outputs[REJECTED] | "SomeRejected" >> beam.combiners.Top.Smallest(MAX_LISTED)
    copies = (
        outputs[DIGESTS]
        | "ByContent" >> beam.GroupByKey()
        | "Copies" >> beam.ParDo(_Copies()).with_outputs(COUNTS, main="groups")
    )
    counts = (
        (outputs[COUNTS], copies[COUNTS]) | "AllCounts" >> beam.Flatten() | "Sum" >> beam.CombinePerKey(sum)
    )
    lines = (
        rejected | "RejectedLines" >> beam.FlatMap(lambda found: found),
        copies["groups"]
        | "SomeCopies" >> beam.combiners.Top.Smallest(MAX_LISTED)
        | "CopiesLines" >> beam.FlatMap(lambda found: found),
        counts
        | "CountLines" >> beam.MapTuple(lambda what, number: json.dumps({"count": what, "number": number})),
    )
    return {split: outputs[split] for split in splits}, lines | "AllLines" >> beam.Flatten()


def _batches(pipeline: beam.Pipeline, path: str, kind: str, *, by_hash: bool) -> Any:
    """Batches of items, spread over the workers."""
    if kind in ("folder", "csv", "parquet"):
        read = functools.partial(image_items.manifest_items, kind="parquet" if kind == "parquet" else "csv")
        if kind == "folder":
            read = functools.partial(image_items.folder_items, split_folders=not by_hash)
        return (
            pipeline
            | "Source" >> beam.Create([path])
            | "List" >> beam.FlatMap(lambda root: image_items.batched(read(root)))
            | "Spread" >> beam.Reshuffle()
        )
    # Records hold the images themselves: files are spread, never their content. Beam's own ReadAllFromTFRecord ends the
    # run at a damaged file.
    of_file = image_items.items_of_log if kind == "prediction_log" else image_items.items_of_records
    return (
        pipeline
        | "Files" >> beam.Create([file.path for file in image_items.record_files(path, kind)])
        | "Spread" >> beam.Reshuffle()
        | "Records" >> beam.FlatMap(lambda file: image_items.batched(of_file(file, root=path), _RECORD_BATCH))
    )


class _ToExamples(beam.DoFn):
    """Batch of items → serialized Examples by split, digests, counts, and what cannot be used as lines of JSON."""

    def __init__(self, rules: Rules, splits: list[str]) -> None:
        self._rules, self._splits = rules, frozenset(splits)

    def process(self, batch: Batch) -> Iterator[beam.pvalue.TaggedOutput]:
        counts: collections.Counter[str] = collections.Counter()
        digests: dict[int, list[Digest]] = collections.defaultdict(list)
        rejected: list[tuple[str, str, str]] = []
        waiting: collections.deque[tuple[Item, int | None, bytes]] = collections.deque()
        for found in measured(self._read(batch, waiting, rejected, counts)):
            item, index, encoded = waiting.popleft()
            if isinstance(found, str):
                rejected.append(("corrupt", item.name, found))
                continue
            split = self._rules.split_of(item, found.sha256)
            if split not in self._splits:
                rejected.append(("split", item.name, "its source names no split for it"))
                continue
            name = item.name or f"sha256:{found.sha256.hex()[:16]}"
            counts[f"images/{split}"] += 1
            digests[found.sha256[0] % _DIGEST_GROUPS].append(
                (found.sha256, split, -1 if index is None else index, name)
            )
            text = None if index is None else self._rules.labels[index]
            yield beam.pvalue.TaggedOutput(
                split, example_of(encoded, found, name=name, index=index, text=text)
            )
        for kind, name, reason in rejected:
            counts[kind] += 1
            line = json.dumps({"file": name, "kind": kind, "reason": reason}, ensure_ascii=False)
            yield beam.pvalue.TaggedOutput(REJECTED, line)
        yield from (beam.pvalue.TaggedOutput(COUNTS, count) for count in counts.items())
        yield from (beam.pvalue.TaggedOutput(DIGESTS, group) for group in digests.items())

    def _read(
        self,
        batch: Batch,
        waiting: collections.deque[tuple[Item, int | None, bytes]],
        rejected: list[tuple[str, str, str]],
        counts: collections.Counter[str],
    ) -> Iterator[bytes]:
        """The bytes of every usable item, one after the other as they are wanted."""
        for item in map(Item._make, batch):
            if item.problem is not None:
                rejected.append(("corrupt", item.name, item.problem))
                continue
            if item.label is None and (item.path is not None or item.encoded is None):
                counts["ignored"] += 1
                continue
            index = self._rules.class_of(item.label)
            if index is None and item.split != SERVING:
                reason = f"its class {item.label!r} is not one of the model's labels"
                rejected.append(("class", item.name, reason))
                continue
            try:
                encoded = item.encoded if item.path is None else read_bytes(item.path)
            except OSError as error:
                rejected.append(("corrupt", item.name, error.strerror or " ".join(str(error).split())[:200]))
                continue
            assert encoded is not None
            waiting.append((item, index, encoded))
            yield encoded


def example_of(encoded: bytes, found: Measured, *, name: str, index: int | None, text: str | None) -> bytes:
    """A serialized tf.train.Example: the file's own bytes, and what was measured (see `image_features`).

    Args:
        encoded: The file's bytes.
        found: Its measurements.
        name: Path relative to the source, or what else identifies the image.
        index: Index of the class in the model's labels; None leaves the class out.
        text: Name of the class.
    """
    features: dict[str, bytes | int | float] = {
        "image/encoded": encoded,
        "image/filename": name.encode(),
        "image/format": found.format.encode(),
        "image/height": found.height,
        "image/width": found.width,
        "image/channels": found.channels,
        "image/bytes": len(encoded),
        "image/aspect": found.width / found.height,
        "image/brightness": found.brightness,
        "image/mean": sum(found.mean) / 3,
        "image/sharpness": found.sharpness,
    }
    for channel, mean, std in zip(("red", "green", "blue"), found.mean, found.std, strict=True):
        features[f"image/mean/{channel}"], features[f"image/std/{channel}"] = mean, std
    if index is not None and text is not None:
        features["image/class/label"], features["image/class/text"] = index, text.encode()
    return example_bytes(features)


class _Copies(beam.DoFn):
    """(group, lists of digests) → one line of JSON for every content that more than one image has."""

    def process(self, grouped: tuple[int, Iterable[list[Digest]]]) -> Iterator[Any]:
        by_content: dict[bytes, list[Digest]] = {}
        for digests in grouped[1]:
            for digest in digests:
                by_content.setdefault(digest[0], []).append(digest)
        counts: collections.Counter[str] = collections.Counter()
        for content, images in by_content.items():
            if len(images) == 1:
                continue
            images.sort(key=lambda image: image[3])
            in_splits = collections.Counter(split for _, split, _, _ in images)
            num_labels = len({label for _, _, label, _ in images})
            counts["copies"] += len(images) - 1
            if num_labels > 1:
                counts["contradictory"] += len(images)
            if len(in_splits) > 1:
                counts["leaked"] += sum(number for split, number in in_splits.items() if split != "train")
            yield json.dumps(
                {
                    # First, so that the groups across splits come first where not all are listed.
                    "within_split": len(in_splits) == 1,
                    "sha256": content.hex(),
                    "splits": dict(sorted(in_splits.items())),
                    "num_labels": num_labels,
                    "files": [name for _, _, _, name in images[:_MAX_COPIES_NAMED]],
                },
                ensure_ascii=False,
            )
        yield from (beam.pvalue.TaggedOutput(COUNTS, count) for count in counts.items())
