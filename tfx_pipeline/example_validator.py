"""ExampleValidator: the data is as the schema says, like the data before it and like what is served.

TFX's own looks at the schema only, and compares spans in a component of its own that passes what has no baseline. This
one makes every comparison there is data for in one place and writes down which: what could not be compared is listed.
"""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, writer_utils

from isthmus.tfx_pipeline import distances
from isthmus.tfx_pipeline.anomalies import FINDINGS_FILE, explained, finding
from isthmus.tfx_pipeline.image_example_gen import FINGERPRINT, named, read_report
from isthmus.tfx_pipeline.image_items import SERVING

PASSED = "passed"
"""Integer property of the anomalies artifact: 1 when there are none."""

STATISTICS = "statistics_uri"
"""String property of the anomalies artifact: the statistics that were looked at, for a later run to compare with."""

_FILE = "SchemaDiff.pb"


class Executor(base_executor.BaseExecutor):
    """Asks TFDV, split by split, and adds what ImageExampleGen found."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write TFX's `Split-*/SchemaDiff.pb` and findings.json; never raises because of the data."""
        (statistics,), (examples,) = input_dict["statistics"], input_dict["examples"]
        (artifact,) = output_dict["anomalies"]
        gate = json.loads(exec_properties["gate"])
        schema = io_utils.SchemaReader().read(
            io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(input_dict["schema"]))
        )
        artifact.splits, artifact.span = statistics.splits, statistics.span
        serving = input_dict.get("serving_statistics") or [None]
        others = _Others(exec_properties["baseline"], serving[0])
        anomalies = intake_findings(read_report(examples), gate)
        compared: list[dict[str, Any]] = []
        for split in statistics.splits:
            here = stats_artifact_utils.load_statistics(statistics, split).proto()
            found = _validate(split, here, schema, gate, others, compared)
            fileio.makedirs(artifact_utils.get_split_uri([artifact], split))
            writer_utils.write_anomalies(
                os.path.join(artifact_utils.get_split_uri([artifact], split), _FILE), found[0]
            )
            anomalies += found[1]
        with fileio.open(os.path.join(artifact.uri, FINDINGS_FILE), "w") as file:
            file.write(
                json.dumps({"anomalies": anomalies, "compared": compared}, indent=2, ensure_ascii=False)
            )
        artifact.set_int_custom_property(PASSED, int(not anomalies))
        artifact.set_string_custom_property(STATISTICS, statistics.uri)
        artifact.set_string_custom_property(FINGERPRINT, examples.get_string_custom_property(FINGERPRINT))
        artifact.set_json_value_custom_property(
            "blessed",
            {
                split: int(not any(one["where"] in (f"{split} split", "the images") for one in anomalies))
                for split in statistics.splits
            },
        )


class _Others:
    """What the data may be compared with."""

    def __init__(self, baseline: str, serving: types.Artifact | None) -> None:
        self._baseline = None
        if baseline:
            self._baseline = standard_artifacts.ExampleStatistics()
            self._baseline.uri = baseline
            self._baseline.splits = sorted(
                name.strip("/").removeprefix("Split-")
                for name in fileio.listdir(baseline)
                if name.startswith("Split-")
            )
        self._serving = serving

    def of(self, kind: str, split: str) -> Any | None:
        """The other side of a comparison of this kind, or None where there is none for this split."""
        if kind == "skew":
            artifact = self._serving if split == "train" else None
            name = SERVING
        else:
            artifact, name = self._baseline, split
        if artifact is None or name not in artifact.splits:
            return None
        return stats_artifact_utils.load_statistics(artifact, name).proto()


def _validate(
    split: str,
    here: Any,
    schema: schema_pb2.Schema,
    gate: dict[str, Any],
    others: _Others,
    compared: list[dict[str, Any]],
) -> tuple[Any, list[dict[str, str]]]:
    """(TFDV's anomalies, the same in words) of one split; what was compared is added to `compared`."""
    sides: dict[str, Any] = {}
    num_images = distances.num_images_of(here)
    for kind in ("drift", "skew"):
        other = others.of(kind, split)
        if other is None:
            continue
        sides[kind] = other
        schema = distances.with_comparators(
            schema, kind=kind, limits=gate[kind], num_images=num_images, other=distances.num_images_of(other)
        )
    schema = distances.comparable(schema)
    anomalies = tfdv.validate_statistics(
        here, schema, previous_statistics=sides.get("drift"), serving_statistics=sides.get("skew")
    )
    for info in anomalies.drift_skew_info:
        for kind, measurements in (("drift", info.drift_measurements), ("skew", info.skew_measurements)):
            compared += [
                {
                    "split": split,
                    "kind": kind,
                    "feature": ".".join(info.path.step),
                    "distance": measurement.value,
                    "limit": measurement.threshold,
                }
                for measurement in measurements
            ]
    return anomalies, explained(split, anomalies, schema=schema, statistics=here, others=sides)


def intake_findings(report: dict[str, Any], gate: dict[str, Any]) -> list[dict[str, str]]:
    """What ImageExampleGen found and the thresholds do not allow.

    Args:
        report: Its report.json.
        gate: `on_corrupt`, `max_corrupt_share` and `max_duplicate_share`.
    """
    found = []
    num_readable, num_corrupt = sum(report["num_images"].values()), report["num_corrupt"]
    total = num_readable + num_corrupt
    if num_corrupt and gate["on_corrupt"] == "fail":
        found.append(
            finding(
                "the images",
                "",
                "remove them, or set pipeline.on_corrupt to quarantine",
                f"{num_corrupt} of {total} images cannot be read: {named(report['corrupt'], num_corrupt)}",
            )
        )
    elif num_corrupt > gate["max_corrupt_share"] * total:
        found.append(
            finding(
                "the images",
                "",
                f"pipeline.max_corrupt_share allows {gate['max_corrupt_share']:g} of them",
                f"{num_corrupt} of {total} images cannot be read: {named(report['corrupt'], num_corrupt)}",
            )
        )
    num_leaked = report["copies"]["num_leaked"]
    num_evaluated = sum(count for split, count in report["num_images"].items() if split != "train")
    if num_leaked > gate["max_duplicate_share"] * num_evaluated:
        across = [group["files"] for group in report["copies"]["groups"] if not group["within_split"]]
        pairs = "; ".join(" = ".join(files[:3]) for files in across[:3])
        found.append(
            finding(
                "the images",
                "",
                f"pipeline.data.max_duplicate_share allows {gate['max_duplicate_share']:g} of them",
                f"{num_leaked} of the {num_evaluated} val and test images are copies of images in another split: "
                f"{pairs}{'; …' if len(across) > 3 else ''}",
            )
        )
    return found


class ExampleValidatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of ExampleValidator."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "gate": ExecutionParameter(type=str),
        "baseline": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "serving_statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics, optional=True),
    }
    OUTPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}  # noqa: RUF012


class ExampleValidator(base_component.BaseComponent):
    """Gate: the data."""

    SPEC_CLASS = ExampleValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        serving_statistics: types.BaseChannel | None,
        gate: str,
        baseline: str,
        code: str,
    ) -> None:
        """Describe one run.

        Args:
            examples: For what ImageExampleGen found.
            statistics: Of every split.
            schema: What they should be like.
            serving_statistics: Of the prediction log's images; None compares nothing with what is served.
            gate: The thresholds, as JSON (see `data_pipeline.gate_of`).
            baseline: Folder of the statistics to compare with; "" compares with nothing earlier.
            code: Digest of the code behind it; only the cache looks at it.
        """
        super().__init__(
            ExampleValidatorSpec(
                examples=examples,
                statistics=statistics,
                schema=schema,
                serving_statistics=serving_statistics,
                gate=gate,
                baseline=baseline,
                code=code,
                anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
            )
        )
