"""The export's configuration: what a recipe may say, and what it is told when it says something else."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from isthmus.export.config import ExportConfig, GateConfig, Override

PARSE = TypeAdapter(ExportConfig).validate_python


def test_an_empty_section_has_the_designs_gates() -> None:
    config = PARSE({})
    assert config == ExportConfig()
    assert config.gates == GateConfig(logit_error=1e-3, top1_agreement=1.0, differing_pixels=0)
    assert config.rungs == ("direct", "onnx2tf")


def test_a_configuration_survives_json() -> None:
    config = ExportConfig(
        rungs=("direct",),
        warmup_batch_sizes=(1, 16),
        overrides=(Override(gate="server_rest", who="Ada", why="behind a proxy"),),
    )
    assert ExportConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(("sizes", "measured"), [((1, 8), (1, 3, 8)), ((1,), (1, 3)), ((32, 4), (1, 3, 32))])
def test_parity_is_measured_at_one_three_and_the_largest(
    sizes: tuple[int, ...], measured: tuple[int, ...]
) -> None:
    assert ExportConfig(warmup_batch_sizes=sizes).batch_sizes == measured


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"skip_parity": True}, "skip_parity"),
        ({"rungs": ["tflite"]}, "rungs"),
        ({"rungs": []}, "name each rung once, at least one"),
        ({"rungs": ["direct", "direct"]}, "name each rung once, at least one"),
        ({"reference_images": 4}, "at least 16, got 4"),
        ({"opset": 7}, "16 to 20 cross the bridge, got 7"),
        ({"warmup_batch_sizes": [0]}, "positive sizes, got"),
        ({"precision": "int4"}, "precision"),
        ({"formats": ["onnx"]}, "formats"),
        ({"formats": ["tflite"]}, "saved_model, and beside it tflite or nothing"),
        ({"gates": {"logit_error": None}}, "a number > 0, got None; see export.reduced"),
        ({"reduced": {"top1_agreement": 1.5}}, r"top1_agreement one in \(0, 1\]"),
        ({"reduced": {"evaluation_images": 4}}, "at least 16 evaluation_images"),
        ({"stage_timeout_s": 0}, "seconds > 0"),
        ({"overrides": [{"gate": "server_rest", "who": "", "why": "hurry"}]}, "say who decided and why"),
        ({"overrides": [{"gate": "all", "who": "Ada", "why": "hurry"}]}, "gate"),
        ({"gates": {"logit_error": -1}}, "logit_error must be > 0"),
    ],
)
def test_a_wrong_section_is_refused_by_name(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        PARSE(section)
