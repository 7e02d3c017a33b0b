"""What a manifest's parity verdicts are worth: whether each holds, against limits no looser than the defaults.

A recipe may loosen `export.gates`, and its bundle is then published and pushed; it is never champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STANDARD: dict[str, float] = {
    "logit_error": 1e-3,
    "top1_agreement": 1.0,
    "tie_margin": 1e-3,
    "differing_pixels": 0,
}
"""What a champion is held to: the defaults of the export's gates in fp32, which `tests/mlflow` compares."""


def stage_holds(stage: Mapping[str, Any]) -> bool:
    """Whether a stage says that it passed and its numbers say so too."""
    error, limit = stage.get("error"), stage.get("limit")
    within = error is None or limit is None or float(error) <= float(limit)
    return stage.get("passed") is True and within


def loose_limits(parity: Mapping[str, Any]) -> list[str]:
    """A sentence for each limit of a stage that is looser than the fp32 default, or not recorded."""
    gates = parity.get("gates") or {}
    found = []
    for stage in parity["stages"]:
        if stage["stage"] == "preprocessing":
            given = {"differing_pixels": stage.get("limit")}
        else:
            given = {key: gates.get(key) for key in ("top1_agreement", "tie_margin")}
            given["logit_error"] = stage.get("limit")
        found += [
            f"{stage['stage']} was measured with {key} {limit}, looser than the default {STANDARD[key]}"
            for key, limit in given.items()
            if not _as_strict(key, limit)
        ]
    return found


def _as_strict(key: str, limit: float | None) -> bool:
    if limit is None:
        return False
    return limit >= STANDARD[key] if key == "top1_agreement" else limit <= STANDARD[key]
