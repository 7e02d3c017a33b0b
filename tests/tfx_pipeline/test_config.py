"""The `pipeline:` section of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from isthmus.tfx_pipeline.config import PipelineConfig

PARSE = TypeAdapter(PipelineConfig).validate_python


def test_everything_has_a_default() -> None:
    assert PARSE({}) == PipelineConfig()


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
        ({"beam_workers": 0}, "beam_workers must be ≥ 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        PARSE(given)
    assert text in str(raised.value)
