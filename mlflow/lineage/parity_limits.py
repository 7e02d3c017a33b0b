"""What a manifest's parity verdicts are worth: whether each holds, against limits no looser than the defaults.

A recipe may loosen `export.gates` or `export.reduced`, and its bundle is then published and pushed; it is never
champion.
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

REDUCED: dict[str, float] = {"max_metric_drop": 0.005, "top1_agreement": 0.99, "tie_margin": 0.05}
"""The same for a model in bf16 or int8: defaults of `ReducedGateConfig`."""

REDUCED_PRECISIONS = ("bf16", "int8")

_AT_LEAST = ("top1_agreement",)
# Whatever the SavedModel's precision, these compare torch with ONNX Runtime, and pixels with pixels.
_ALWAYS_FULL = ("onnxruntime", "preprocessing")


def stage_holds(stage: Mapping[str, Any]) -> bool:
    """Whether a stage says that it passed and its numbers say so too."""
    error, limit, metric = stage.get("error"), stage.get("limit"), stage.get("metric")
    within = error is None or limit is None or float(error) <= float(limit)
    if metric is not None:
        within = within and float(metric["drop"]) <= float(metric["limit"])
    return stage.get("passed") is True and within


def loose_limits(parity: Mapping[str, Any]) -> list[str]:
    """A sentence for each limit of a stage that is looser than the default of its precision, or not recorded."""
    is_reduced = parity.get("precision") in REDUCED_PRECISIONS
    gates = parity.get("gates") or {}
    found = []
    for stage in parity["stages"]:
        standard = STANDARD
        if is_reduced and stage["stage"] not in _ALWAYS_FULL:
            given, standard = _reduced_limits(parity, stage), REDUCED
        elif stage["stage"] == "preprocessing":
            given = {"differing_pixels": stage.get("limit")}
        else:
            given = {key: gates.get(key) for key in ("top1_agreement", "tie_margin")}
            given["logit_error"] = stage.get("limit")
        found += [
            f"{stage['stage']} was measured with {key} {limit}, looser than the default {standard[key]}"
            for key, limit in given.items()
            if not _as_strict(key, limit, standard[key])
        ]
    if is_reduced and "precision" not in {stage["stage"] for stage in parity["stages"]}:
        found.append(f"no stage `precision`: nothing says that {parity['precision']} keeps the metric")
    return found


def _reduced_limits(parity: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    if stage["stage"] in ("precision", "litert"):
        limits, metric = parity.get("reduced") or {}, stage.get("metric") or {}
        return {"max_metric_drop": metric.get("limit"), "top1_agreement": limits.get("top1_agreement")}
    served = parity.get("served_gates") or {}
    return {key: served.get(key) for key in ("top1_agreement", "tie_margin")}


def _as_strict(key: str, limit: float | None, standard: float) -> bool:
    if limit is None:
        return False
    return limit >= standard if key in _AT_LEAST else limit <= standard
