"""ImageExampleGen: images become TFX Examples, over Beam.

Every image is decoded once: to find those that cannot be, and to describe it (`image_features`), so that statistics
over a data set say something. The record carries the file's own bytes; nothing is re-encoded. What cannot be decoded
is left out and listed in report.json beside the examples, with every content that several images have; whether that
is too much is ExampleValidator's business, so that a changed threshold reads no image again.
"""

from __future__ import annotations

import json
import os
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from tfx import types
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline import classes
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_items import SERVING
from isthmus.tfx_pipeline.ingest import Rules, examples_and_findings
from isthmus.tfx_pipeline.spans import Resolved, has_specs, resolve

REPORT_FILE = "report.json"
FINGERPRINT = "input_fingerprint"
"""String property of the Examples artifact: which images these are, as the cache sees it."""

_NAMED = 5


class Executor(base_beam_executor.BaseBeamExecutor):
    """Reads a source and writes one `Split-<name>` of compressed TFRecords for each split."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],  # noqa: ARG002 - TFX's contract
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write the examples and `report.json` beside them.

        Raises:
            PipelineError: A class is unknown to the model, an image has no split, or a split is empty.
        """
        (artifact,) = output_dict["examples"]
        splits = json.loads(exec_properties["splits"])
        source = json.loads(exec_properties["source"])
        read = _read(exec_properties["input_base"], span=source["span"], version=source["version"])
        artifact.splits, artifact.span, artifact.version = splits, read.span, read.version
        findings_file = os.path.join(artifact.uri, "findings.jsonl")
        with self._make_beam_pipeline() as pipeline:
            examples, findings = examples_and_findings(
                pipeline,
                path=read.path,
                kind=source["kind"],
                rules=_rules(source, exec_properties),
                splits=splits,
            )
            for split, serialized in examples.items():
                # The name and compression that every TFX component expects.
                target = os.path.join(artifact.path(split=split), "data_tfrecord")
                _ = serialized | f"Write[{split}]" >> beam.io.WriteToTFRecord(target, file_name_suffix=".gz")
            _ = findings | "WriteFindings" >> beam.io.WriteToText(
                findings_file, num_shards=1, shard_name_template=""
            )
        report = _report(splits, _lines(findings_file), read=vars(read), source=source)
        FileSystems.delete([findings_file])
        _check(report, read.path)
        with FileSystems.create(
            os.path.join(artifact.uri, REPORT_FILE), mime_type="application/json"
        ) as file:
            file.write(json.dumps(report, indent=2, ensure_ascii=False).encode())
        artifact.set_int_custom_property("num_images", sum(report["num_images"].values()))
        artifact.set_int_custom_property("num_corrupt", report["num_corrupt"])
        artifact.set_int_custom_property("num_leaked", report["copies"]["num_leaked"])
        artifact.set_string_custom_property(FINGERPRINT, exec_properties["fingerprint"])


def read_report(examples: types.Artifact) -> dict[str, Any]:
    """What ImageExampleGen found: `num_images` by split, `corrupt`, `copies` and the like."""
    with fileio.open(os.path.join(examples.uri, REPORT_FILE), "r") as file:
        report: dict[str, Any] = json.loads(file.read())
    return report


def named(rejected: list[dict[str, str]], total: int) -> str:
    """The first few files of a list, with their reasons, and how many more there are."""
    listed = "; ".join(f"{line['file']} ({line['reason']})" for line in rejected[:_NAMED])
    return listed + (f"; and {total - _NAMED} more" if total > _NAMED else "")


def _read(pattern: str, *, span: int | None, version: int | None) -> Resolved:
    """Where the images are: of a pattern the span and version that are asked for, or the latest.

    A folder that was uploaded for a cluster has no specs any more: its numbers are those it was found with.
    """
    if not has_specs(pattern):
        return Resolved(path=pattern, span=span or 0, version=version or 0)
    return resolve(pattern, span=span, version=version)


def _rules(source: dict[str, Any], exec_properties: dict[str, Any]) -> Rules:
    labels, class_map = classes.read(exec_properties["classes_file"])
    return Rules(
        labels=labels,
        # A prediction log holds the model's own names.
        class_map={} if source["kind"] == "prediction_log" else class_map,
        by_hash=source["by_hash"],
        val_fraction=source["val_fraction"],
        test_fraction=source["test_fraction"],
        split_seed=source["split_seed"],
    )


def _lines(path: str) -> list[dict[str, Any]]:
    with FileSystems.open(path) as file:
        return [json.loads(line) for line in file.read().decode().splitlines()]


def _report(
    splits: list[str], lines: list[dict[str, Any]], *, read: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    counts = {line["count"]: line["number"] for line in lines if "count" in line}
    rejected = sorted((line for line in lines if "reason" in line), key=lambda line: line["file"])
    groups = sorted(
        (line for line in lines if "sha256" in line), key=lambda line: (line["within_split"], line["files"])
    )

    def listed(kind: str) -> list[dict[str, str]]:
        return [{"file": r["file"], "reason": r["reason"]} for r in rejected if r["kind"] == kind]

    return {
        "source": {**read, "kind": source["kind"], "splits": "hash" if source["by_hash"] else "own"},
        "num_images": {split: counts.get(f"images/{split}", 0) for split in splits},
        "num_ignored": counts.get("ignored", 0),
        "num_corrupt": counts.get("corrupt", 0),
        "corrupt": listed("corrupt"),
        "num_unknown_class": counts.get("class", 0),
        "unknown_class": listed("class"),
        "num_without_split": counts.get("split", 0),
        "without_split": listed("split"),
        "copies": {
            "num_copies": counts.get("copies", 0),
            "num_leaked": counts.get("leaked", 0),
            "num_contradictory": counts.get("contradictory", 0),
            "groups": groups,
        },
    }


def _check(report: dict[str, Any], path: str) -> None:
    if report["num_unknown_class"]:
        raise PipelineError(
            f"{report['num_unknown_class']} images belong to no class of the model: "
            f"{named(report['unknown_class'], report['num_unknown_class'])}"
        )
    if report["num_without_split"]:
        raise PipelineError(
            f"{report['num_without_split']} images have no split: "
            f"{named(report['without_split'], report['num_without_split'])}; "
            "name one for each, or set pipeline.input.splits to hash"
        )
    empty = [split for split, count in report["num_images"].items() if not count]
    if empty:
        unreadable = f" ({report['num_corrupt']} unreadable)" if report["num_corrupt"] else ""
        raise PipelineError(f"no readable image in {', '.join(empty)} of {path}{unreadable}")


class ImageExampleGenSpec(ComponentSpec):
    """Inputs, outputs and parameters of ImageExampleGen."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "input_base": ExecutionParameter(type=str),
        "source": ExecutionParameter(type=str),
        "splits": ExecutionParameter(type=str),
        "classes_file": ExecutionParameter(type=str),
        "fingerprint": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}  # noqa: RUF012
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}  # noqa: RUF012


class ImageExampleGen(base_beam_component.BaseBeamComponent):
    """Ingests images as `tf.train.Example`; `image_items` says from where, `image_features` what is measured."""

    SPEC_CLASS = ImageExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        input_base: str,
        source: dict[str, Any],
        splits: list[str],
        classes_file: str,
        fingerprint: str,
        code: str,
    ) -> None:
        """Describe one run.

        Args:
            input_base: Path of the source, perhaps with `{SPAN}` and `{VERSION}`, which are looked up when it runs.
            source: See `Source.properties` of `sources`.
            splits: Names of the splits of the artifact.
            classes_file: The model's labels, and what the source calls them (see `classes`); a class' index in them is
                its `image/class/label`. The path must change with the content.
            fingerprint: Changes when any image may have changed; only the cache looks at it.
            code: Digest of the code behind it; only the cache looks at it.
        """
        super().__init__(
            ImageExampleGenSpec(
                input_base=input_base,
                source=canonical_json(source),
                splits=json.dumps(splits),
                classes_file=classes_file,
                fingerprint=fingerprint,
                code=code,
                examples=types.Channel(type=standard_artifacts.Examples),
            )
        )
        if splits == [SERVING]:
            self.with_id("ServingExampleGen")
