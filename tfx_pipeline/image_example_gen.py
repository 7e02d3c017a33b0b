"""ImageExampleGen: an ImageFolder becomes TFX Examples, over Beam.

Every image is decoded once: to find those that cannot be, and to describe it (size, brightness), so that statistics
over a data set say something. The record carries the file's own bytes; nothing is re-encoded.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from PIL import Image
from tfx import types
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_folder import class_of, is_image

REPORT_FILE = "report.json"

# What PIL raises for bytes that are no image it can read, or only a part of one.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_COUNTERS = "isthmus.ImageExampleGen"
_NAMED = 5


def example_of(encoded: bytes, *, filename: str, label: int, text: str) -> tf.train.Example:
    """Decode one image and describe it.

    Args:
        encoded: The file's bytes.
        filename: Path relative to the data root, POSIX style.
        label: Index of the class in the model's labels.
        text: Name of the class.

    Returns:
        The record. `image/mean` and `image/std` are in 8-bit levels (0 to 255), over all RGB values.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError: no whole image.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        image_format, num_channels = image.format or "unknown", len(image.getbands())
        rgb = image.convert("RGB")
    mean, std = _brightness(rgb)
    features: dict[str, bytes | int | float] = {
        "image/encoded": encoded,
        "image/format": image_format.lower().encode(),
        "image/filename": filename.encode(),
        "image/height": rgb.height,
        "image/width": rgb.width,
        "image/channels": num_channels,
        "image/bytes": len(encoded),
        "image/aspect": rgb.width / rgb.height,
        "image/mean": mean,
        "image/std": std,
        "image/class/label": label,
        "image/class/text": text.encode(),
    }
    return tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in features.items()}))


def _brightness(rgb: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation of all values, exactly, from the histogram that PIL counts in C."""
    counts = np.asarray(rgb.histogram(), dtype=np.float64).reshape(3, 256).sum(axis=0)
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    variance = float(counts @ (levels - mean) ** 2 / counts.sum())
    return mean, variance**0.5


def _feature(value: bytes | int | float) -> tf.train.Feature:
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


class _ToExample(beam.DoFn):
    """File name → serialized Example; what cannot be used goes to `rejected` as a line of JSON."""

    REJECTED = "rejected"

    def __init__(self, root: str, split: str, labels: list[str]) -> None:
        self._root = root
        self._index = {label: index for index, label in enumerate(labels)}
        self._made = beam.metrics.Metrics.counter(_COUNTERS, f"{split}/images")
        self._ignored = beam.metrics.Metrics.counter(_COUNTERS, f"{split}/ignored")

    def process(self, file: Any) -> Iterator[bytes | beam.pvalue.TaggedOutput]:
        path = file.path
        if not is_image(path):
            self._ignored.inc()
            return
        filename = os.path.relpath(path, self._root).replace(os.sep, "/")
        text = class_of(filename)
        if text not in self._index:
            yield self._rejected("class", filename, f"its folder {text!r} is not one of the model's labels")
            return
        with FileSystems.open(path) as opened:
            encoded = opened.read()
        try:
            example = example_of(encoded, filename=filename, label=self._index[text], text=text)
        except _UNREADABLE as error:
            yield self._rejected(
                "corrupt", filename, str(error).replace(str(path), filename) or type(error).__name__
            )
            return
        self._made.inc()
        yield example.SerializeToString(deterministic=True)

    def _rejected(self, kind: str, filename: str, reason: str) -> beam.pvalue.TaggedOutput:
        # PIL puts the address of its in-memory file into some texts: no two runs would agree.
        reason = reason.split(" <_io.", maxsplit=1)[0]
        return beam.pvalue.TaggedOutput(
            self.REJECTED, json.dumps({"kind": kind, "file": filename, "reason": reason}, ensure_ascii=False)
        )


class Executor(base_beam_executor.BaseBeamExecutor):
    """Reads the split folders and writes one `Split-<name>` of compressed TFRecords each."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],  # noqa: ARG002 - TFX's contract
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write the examples and `report.json` beside them.

        Raises:
            PipelineError: Images are corrupt and the setting says fail (or there are too many), a class is
                unknown to the model, or a split is empty.
        """
        (artifact,) = output_dict["examples"]
        splits = json.loads(exec_properties["splits"])
        artifact.splits = splits
        rejected_file = os.path.join(artifact.uri, "rejected.jsonl")
        with self._make_beam_pipeline() as pipeline:
            rejected = [
                self._convert(pipeline, split, artifact.path(split=split), exec_properties)
                for split in splits
            ]
            _ = (
                rejected
                | "FlattenRejected" >> beam.Flatten()
                | "WriteRejected" >> beam.io.WriteToText(rejected_file, num_shards=1, shard_name_template="")
            )
        counters = {
            counter.key.metric.name: counter.result
            for counter in pipeline.result.metrics().query()["counters"]
            if counter.key.metric.namespace == _COUNTERS
        }
        report = _report(splits, counters, _lines(rejected_file))
        FileSystems.delete([rejected_file])
        _check(report, exec_properties)
        with FileSystems.create(
            os.path.join(artifact.uri, REPORT_FILE), mime_type="application/json"
        ) as file:
            file.write(json.dumps(report, indent=2, ensure_ascii=False).encode())
        artifact.set_int_custom_property("num_images", sum(report["num_images"].values()))
        artifact.set_int_custom_property("num_corrupt", len(report["corrupt"]))

    def _convert(
        self, pipeline: beam.Pipeline, split: str, target: str, exec_properties: dict[str, Any]
    ) -> Any:
        root = exec_properties["input_base"]
        convert = _ToExample(root, split, json.loads(exec_properties["labels"]))
        outputs = (
            pipeline
            | f"Match[{split}]" >> fileio.MatchFiles(os.path.join(root, split, "**"))
            | f"Spread[{split}]" >> beam.Reshuffle()
            | f"ToExample[{split}]" >> beam.ParDo(convert).with_outputs(_ToExample.REJECTED, main="examples")
        )
        # The name and compression that every TFX component expects.
        _ = outputs.examples | f"Write[{split}]" >> beam.io.WriteToTFRecord(
            os.path.join(target, "data_tfrecord"), file_name_suffix=".gz"
        )
        return outputs[_ToExample.REJECTED]


def _lines(path: str) -> list[dict[str, str]]:
    with FileSystems.open(path) as file:
        return [json.loads(line) for line in file.read().decode().splitlines()]


def _report(splits: list[str], counters: dict[str, int], rejected: list[dict[str, str]]) -> dict[str, Any]:
    rejected = sorted(rejected, key=lambda line: line["file"])
    return {
        "num_images": {split: counters.get(f"{split}/images", 0) for split in splits},
        "num_ignored": {split: counters.get(f"{split}/ignored", 0) for split in splits},
        "corrupt": [{"file": r["file"], "reason": r["reason"]} for r in rejected if r["kind"] == "corrupt"],
        "unknown_class": [
            {"file": r["file"], "reason": r["reason"]} for r in rejected if r["kind"] == "class"
        ],
    }


def _named(rejected: list[dict[str, str]]) -> str:
    named = "; ".join(f"{line['file']} ({line['reason']})" for line in rejected[:_NAMED])
    return named + (f"; and {len(rejected) - _NAMED} more" if len(rejected) > _NAMED else "")


def _check(report: dict[str, Any], exec_properties: dict[str, Any]) -> None:
    corrupt, unknown = report["corrupt"], report["unknown_class"]
    num_images = sum(report["num_images"].values()) + len(corrupt)
    if unknown:
        raise PipelineError(f"{len(unknown)} images belong to no class of the model: {_named(unknown)}")
    if corrupt and exec_properties["on_corrupt"] == "fail":
        raise PipelineError(
            f"{len(corrupt)} of {num_images} images cannot be read: {_named(corrupt)}. "
            "Remove them, or set pipeline.on_corrupt to quarantine"
        )
    if len(corrupt) > exec_properties["max_corrupt_share"] * num_images:
        raise PipelineError(
            f"{len(corrupt)} of {num_images} images cannot be read, more than pipeline.max_corrupt_share "
            f"{exec_properties['max_corrupt_share']:g} allows: {_named(corrupt)}"
        )
    empty = [split for split, count in report["num_images"].items() if not count]
    if empty:
        raise PipelineError(f"no readable image in {', '.join(empty)} of {exec_properties['input_base']}")


class ImageExampleGenSpec(ComponentSpec):
    """Inputs, outputs and parameters of ImageExampleGen."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "input_base": ExecutionParameter(type=str),
        "splits": ExecutionParameter(type=str),
        "labels": ExecutionParameter(type=str),
        "on_corrupt": ExecutionParameter(type=str),
        "max_corrupt_share": ExecutionParameter(type=float),
        "fingerprint": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}  # noqa: RUF012
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}  # noqa: RUF012


class ImageExampleGen(base_beam_component.BaseBeamComponent):
    """Ingests `<input_base>/<split>/<class>/` as `tf.train.Example`; `image_folder` says which files are images."""

    SPEC_CLASS = ImageExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        input_base: str,
        splits: list[str],
        labels: list[str],
        on_corrupt: str,
        max_corrupt_share: float,
        fingerprint: str,
        code: str,
    ) -> None:
        """Describe one run.

        Args:
            input_base: The data root; a local path or anything that Beam's file systems open.
            splits: Names of the split folders; each becomes a split of the artifact.
            labels: The model's labels; a class' index in them is its `image/class/label`.
            on_corrupt: `fail` or `quarantine`.
            max_corrupt_share: With `quarantine`, the largest share that may be left out.
            fingerprint: Changes when any image may have changed; only the cache looks at it.
            code: Digest of this package's code; only the cache looks at it.
        """
        super().__init__(
            ImageExampleGenSpec(
                input_base=input_base,
                splits=json.dumps(splits),
                labels=json.dumps(labels),
                on_corrupt=on_corrupt,
                max_corrupt_share=max_corrupt_share,
                fingerprint=fingerprint,
                code=code,
                examples=types.Channel(type=standard_artifacts.Examples),
            )
        )
