"""Which earlier statistics the data is compared with: those of the span before, or of the last other data, that passed.

Data that was refused is never a baseline: a second run on the same poisoned images would find nothing unusual.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.types.standard_artifacts import ExampleAnomalies

from isthmus.tfx_pipeline.example_validator import PASSED, STATISTICS
from isthmus.tfx_pipeline.image_example_gen import FINGERPRINT


@dataclass(kw_only=True, frozen=True)
class Accepted:
    """Data that passed ExampleValidator."""

    number: int
    """MLMD's id of the anomalies artifact; later ones are larger."""

    fingerprint: str
    """Of the images."""

    span: int
    """0 where the input has none."""

    statistics: str
    """Folder of the statistics artifact."""


def baseline_of(accepted: list[Accepted], *, fingerprint: str, span: int | None) -> str:
    """The statistics to compare with; "" when there is nothing to compare with.

    Args:
        accepted: Data that passed before.
        fingerprint: Of the images at hand; they are not compared with themselves.
        span: Of the images at hand; None where the input has none.
    """
    others = [each for each in accepted if each.fingerprint != fingerprint]
    if span is not None:
        others = [each for each in others if each.span < span]
    if not others:
        return ""
    return max(others, key=lambda each: (each.span if span is not None else 0, each.number)).statistics


def accepted_data(connection: Any, pipeline_root: str) -> list[Accepted]:
    """Everything below a pipeline's root that passed and is still there.

    Args:
        connection: MLMD's connection config.
        pipeline_root: Folder of the pipeline's artifacts.
    """
    with metadata.Metadata(connection) as handle:
        if not any(kind.name == ExampleAnomalies.TYPE_NAME for kind in handle.store.get_artifact_types()):
            return []
        found = handle.store.get_artifacts_by_type(ExampleAnomalies.TYPE_NAME)
    return [
        Accepted(
            number=artifact.id,
            fingerprint=artifact.custom_properties[FINGERPRINT].string_value,
            span=artifact.properties["span"].int_value if "span" in artifact.properties else 0,
            statistics=artifact.custom_properties[STATISTICS].string_value,
        )
        for artifact in found
        if artifact.uri.startswith(os.path.join(pipeline_root, ""))
        and artifact.state == metadata_store_pb2.Artifact.LIVE
        and artifact.custom_properties[PASSED].int_value == 1
        and os.path.isdir(artifact.custom_properties[STATISTICS].string_value)
    ]
