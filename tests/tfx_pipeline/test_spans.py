"""Spans and versions: what TFX's own patterns find, ours find."""

from __future__ import annotations

from pathlib import Path

import pytest
from tfx.components.example_gen import utils
from tfx.proto import example_gen_pb2

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.spans import Resolved, resolve


def lay(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "x").write_text("")


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("span-{SPAN}/v{VERSION}", ["span-1/v1", "span-2/v9", "span-2/v10", "span-10/v1", "span-10/v2"]),
        ("day{SPAN:3}", ["day001", "day020"]),
        ("{YYYY}-{MM}-{DD}/v{VERSION:2}", ["2026-11-21/v01", "2026-11-21/v03", "2026-10-30/v09"]),
        ("{YYYY}{MM}{DD}", ["20260131", "20251231"]),
    ],
)
def test_the_latest_is_tfxs(tmp_path: Path, pattern: str, folders: list[str]) -> None:
    lay(tmp_path, *folders)
    found = resolve(f"{tmp_path}/{pattern}")
    split = example_gen_pb2.Input.Split(name="all", pattern=f"{pattern}/*")
    _, span, version = utils.calculate_splits_fingerprint_span_and_version(f"{tmp_path}/", [split])
    assert (found.span, found.version) == (span, version or 0)
    assert found.path == f"{tmp_path}/{Path(split.pattern).parent}"


def test_one_may_be_asked_for(tmp_path: Path) -> None:
    lay(tmp_path, "span-1/v1/data", "span-1/v2/data", "span-2/v1/data")
    pattern = f"{tmp_path}/span-{{SPAN}}/v{{VERSION}}/data"
    assert resolve(pattern, span=1) == Resolved(path=f"{tmp_path}/span-1/v2/data", span=1, version=2)
    assert resolve(pattern, span=1, version=1).path == f"{tmp_path}/span-1/v1/data"
    with pytest.raises(PipelineError, match=r"has no span 3; it has 1, 2$"):
        resolve(pattern, span=3)
    with pytest.raises(PipelineError, match=r"span 2 of .* has no version 2; it has 1$"):
        resolve(pattern, span=2, version=2)


def test_what_does_not_fit_the_width_is_left_out(tmp_path: Path) -> None:
    """TFX stops there with "Glob pattern does not match regex pattern"."""
    lay(tmp_path, "day001", "day9")
    assert resolve(f"{tmp_path}/day{{SPAN:3}}").span == 1


def test_a_path_without_specs_is_itself() -> None:
    assert resolve("/images") == Resolved(path="/images", span=0, version=0)


@pytest.mark.parametrize(
    ("pattern", "arguments", "text"),
    [
        ("a/{SPAN}/{SPAN}", {}, "each may be used once"),
        ("a/{VERSION}", {}, r"counts within a span; add \{SPAN\}"),
        ("a/{YYYY}/{MM}", {}, r"or all of \{YYYY\}, \{MM\} and \{DD\}"),
        ("a/{SPAN}-{DD}", {}, r"use \{SPAN\}, or all of"),
        ("a/b", {"span": 1}, r"span 1 was asked for, but a/b has no \{SPAN\}"),
        ("a/{SPAN}", {"version": 1}, r"version 1 was asked for, but .* has no \{VERSION\}"),
    ],
)
def test_patterns_that_mean_nothing(pattern: str, arguments: dict[str, int], text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        resolve(pattern, **arguments)


def test_nothing_there_says_what_is(tmp_path: Path) -> None:
    lay(tmp_path, "days/monday")
    with pytest.raises(PipelineError, match=r"nothing matches .*; .*/days holds monday$"):
        resolve(f"{tmp_path}/days/{{SPAN}}")
