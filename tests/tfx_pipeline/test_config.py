"""The `pipeline:` section of a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline.config import EvaluationGate, PipelineConfig

PARSE = TypeAdapter(PipelineConfig).validate_python


def test_everything_has_a_default() -> None:
    assert PARSE({}) == PipelineConfig()


def test_a_gate_survives_the_way_to_its_executor() -> None:
    """As JSON, in which a tuple is a list."""
    gate = PARSE({"evaluation": {"size_edges": [8, 16], "min_class_accuracy": 0.5}}).evaluation
    assert gate.size_edges == (8, 16)
    again = EvaluationGate(**json.loads(canonical_json(asdict(gate))))
    assert tuple(again.size_edges) == gate.size_edges
    assert again.min_class_accuracy == 0.5


def test_nested_sections() -> None:
    config = PARSE({"evaluation": {"min_accuracy": 0.95}, "server": {"num_images": 3}})
    assert config.evaluation.min_accuracy == 0.95
    assert config.server.num_images == 3


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"unknown": 1}, "unknown"),
        ({"evaluation": {"min_acuracy": 0.9}}, "min_acuracy"),
        ({"evaluation_split": "train"}, "'val' or 'test'"),
        ({"on_corrupt": "ignore"}, "'fail' or 'quarantine'"),
        ({"evaluation": {"min_accuracy": 98}}, "evaluation.min_accuracy is a share between 0 and 1, got 98"),
        ({"max_corrupt_share": -1}, "max_corrupt_share is a share between 0 and 1, got -1"),
        ({"parity": {"logit_error": 0}}, "parity.logit_error must be > 0, got 0"),
        ({"parity": {"top1_agreement": 0}}, "top1_agreement is a share in"),
        ({"server": {"num_images": 0}}, "server.num_images must be ≥ 1, got 0"),
        ({"server": {"deadline_s": 0}}, "server.deadline_s must be > 0 seconds, got 0"),
        (
            {"evaluation": {"min_size_accuracy": 2}},
            "evaluation.min_size_accuracy is a share between 0 and 1, got 2",
        ),
        ({"evaluation": {"min_slice_images": 0}}, "evaluation.min_slice_images must be ≥ 1, got 0"),
        ({"evaluation": {"confidence": 1}}, "evaluation.confidence is a share in (0, 1), got 1"),
        (
            {"evaluation": {"size_edges": [64, 32]}},
            "evaluation.size_edges are growing numbers ≥ 1, got [64, 32]",
        ),
        ({"parity": {"min_evaluation_images": -1}}, "parity.min_evaluation_images must be ≥ 0, got -1"),
        ({"server": {"num_requests": 0}}, "server.num_requests must be ≥ 1, got 0"),
        ({"server": {"memory_mb": 0}}, "server.memory_mb must be > 0, got 0"),
        ({"server": {"first_request_ms": 0}}, "server.first_request_ms must be > 0, got 0"),
        (
            {"server": {"binary": "a", "image": "b"}},
            "server.binary and pipeline.server.image exclude each other",
        ),
        ({"beam_workers": 0}, "beam_workers must be ≥ 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        PARSE(given)
    assert text in str(raised.value)
