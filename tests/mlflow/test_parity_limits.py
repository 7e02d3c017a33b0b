"""A bundle in reduced precision is champion by its own limits, and by no looser ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from isthmus.export.config import ExportConfig, ReducedGateConfig
from isthmus.lineage import parity_limits


def parity(precision: str = "bf16", **limits: Any) -> dict[str, Any]:
    """What a manifest says of an export with these limits, all stages passed."""
    config = ExportConfig(precision=precision, reduced=ReducedGateConfig(**limits))
    stages = []
    for stage in config.stages:
        row: dict[str, Any] = {"stage": stage, "error": 0.0, "limit": 1e-3, "passed": True}
        if stage == "preprocessing":
            row["limit"] = 0
        elif stage != "onnxruntime" and config.is_reduced:
            row |= {"error": 0.3, "limit": None}
        if stage == "precision":
            row["metric"] = {"drop": 0.0, "limit": config.reduced.max_metric_drop}
        stages.append(row)
    return {
        "passed": True,
        "gates": asdict(config.gates),
        "served_gates": asdict(config.served_gates),
        "precision": precision,
        "reduced": asdict(config.reduced),
        "stages": stages,
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_defaults_of_each_precision_are_strict_enough(precision: str) -> None:
    assert parity_limits.loose_limits(parity(precision)) == []


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"max_metric_drop": 0.02}, "max_metric_drop 0.02, looser than the default 0.005"),
        ({"top1_agreement": 0.9}, "top1_agreement 0.9, looser than the default 0.99"),
        ({"tie_margin": 2.0}, "tie_margin 2.0, looser than the default 0.05"),
    ],
)
def test_looser_ones_are_named(limits: dict[str, Any], text: str) -> None:
    found = parity_limits.loose_limits(parity(**limits))
    assert any(text in line for line in found)


def test_reduced_precision_without_its_own_stage_proves_nothing() -> None:
    record = parity()
    record["stages"] = [row for row in record["stages"] if row["stage"] != "precision"]
    assert parity_limits.loose_limits(record) == [
        "no stage `precision`: nothing says that bf16 keeps the metric"
    ]


def test_fp32_gets_no_benefit_from_limits_of_reduced_precision() -> None:
    record = {**parity(), "precision": "fp32"}
    assert any(
        "saved_model was measured with logit_error None" in line
        for line in parity_limits.loose_limits(record)
    )


def test_a_metric_beyond_its_limit_does_not_hold_whatever_the_stage_says() -> None:
    stage = {"stage": "precision", "passed": True, "error": 0.1, "limit": None}
    assert parity_limits.stage_holds({**stage, "metric": {"drop": 0.004, "limit": 0.005}})
    assert not parity_limits.stage_holds({**stage, "metric": {"drop": 0.006, "limit": 0.005}})


def test_the_standard_is_the_export_s_default() -> None:
    defaults = asdict(ReducedGateConfig())
    assert {key: defaults[key] for key in parity_limits.REDUCED} == parity_limits.REDUCED
