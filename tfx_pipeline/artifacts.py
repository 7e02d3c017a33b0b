"""Artifact types of our own, and the verdict file that every gate of ours leaves in its artifact."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from tfx.dsl.io import fileio
from tfx.types.artifact import Artifact

VERDICT_FILE = "verdict.json"
BLESSED = "blessed"
"""Integer property of a gate's artifact: 1 when the gate was passed, as TFX's own blessings have it."""


class ParityReport(Artifact):
    """How far the SavedModel is from torch in the pipeline's runtime: verdict.json, property `blessed`."""

    TYPE_NAME = "isthmus.ParityReport"


class DataReportPage(Artifact):
    """What the data of a run looks like: index.html."""

    TYPE_NAME = "isthmus.DataReportPage"


class Registration(Artifact):
    """What the registry was told: registration.json, properties `registered_version` and `mlflow_run_id`."""

    TYPE_NAME = "isthmus.Registration"


@dataclass(kw_only=True)
class Verdict:
    """What a gate found."""

    passed: bool
    """A gate that could not run leaves no verdict: it raises, nothing is cached and nothing goes on."""

    summary: str
    """A few words for the line that a person sees."""

    reasons: list[str] = field(default_factory=list)
    """Why not, one sentence each; empty when passed."""

    details: dict[str, Any] = field(default_factory=dict)
    """Everything that was measured."""

    def write(self, artifact: Artifact) -> None:
        """Leave the verdict in the artifact's folder and as its property `blessed`."""
        assert self.passed != bool(self.reasons), (
            "a gate that refuses says why, one that passes has no reasons"
        )
        with fileio.open(os.path.join(artifact.uri, VERDICT_FILE), "w") as file:
            file.write(json.dumps(asdict(self), indent=2, ensure_ascii=False))
        artifact.set_int_custom_property(BLESSED, int(self.passed))

    @classmethod
    def read(cls, artifact: Artifact) -> Verdict:
        """The verdict in an artifact."""
        with fileio.open(os.path.join(artifact.uri, VERDICT_FILE), "r") as file:
            return cls(**json.loads(file.read()))
