"""Coverage: its state, its page, and a few families of the page exported anew, others every week."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from isthmus.export import coverage_page
from isthmus.export.config import ExportConfig
from isthmus.export.coverage import CoverageRun, line, read_results

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
#: Families a week, and the largest that a test may build.
NUM_FAMILIES, MILLION_PARAMETERS = 2, 7.0


def result(family: str, *, passed: bool = True, **changes: Any) -> dict[str, Any]:
    tried = {
        "rung": "direct",
        "passed": passed,
        "error": 2.5e-6,
        "problem": None if passed else "too far | really",
        "transposes": 3,
        "conversion_memory_bytes": 700 << 20,
    }
    return {
        "family": family,
        "choice": {"model": f"{family}_tiny", "num_parameters": 1_500_000, "input_size": [3, 224, 192]},
        "input_size": [3, 224, 192],
        "versions": {"timm": "1.0.31"},
        "passed": passed,
        "rung": "direct" if passed else None,
        "rungs": [tried],
        "error": 2.5e-6,
        "onnx_error": 1e-6,
        "randomization": {"conditioning": 3e-6, "shift": 0.5},
        "weights_bytes": 6 << 20,
        "seconds": 61.2,
        "code": "1",
        **({} if passed else {"problem": "direct: too far\nreally"}),
        **changes,
    }


def test_the_page_says_what_passed_what_failed_and_what_is_missing() -> None:
    results = {"vit": result("vit"), "swin": result("swin", passed=False)}
    text = coverage_page.page(results, families=["swin", "vit", "cait"])
    assert "**1 of 2 pass (50.0 %): 1 by direct; 1 families have not been run yet.**" in text
    assert (
        "| vit | `vit_tiny` | 1.5 | 224×192 | 2.5e-06 | 1.0e-06 | 3.0e-06 | 0.5 | 61 | 700 | 6 | 3 | direct |"
        in text
    )
    assert "- **swin** (`swin_tiny`): direct: too far really" in text
    assert "## Not run yet\n\ncait\n" in text
    assert coverage_page.passing(text) == {"vit": "vit_tiny"}
    assert parameters_of(text) == {"vit": 1.5, "swin": 1.5}
    assert line(results["swin"]).endswith("FAILED: direct: too far\nreally")


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    run = CoverageRun(home=tmp_path, config=ExportConfig())
    run.state.parent.mkdir(parents=True)
    rows = [result("vit", passed=False), result("vit"), result("swin")]
    cut_off = json.dumps(result("cait"))[:40]
    run.state.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut_off)
    assert read_results(run.state).keys() == {"vit", "swin"}
    assert list(run.cover(["vit", "swin"])) == []


def parameters_of(text: str) -> dict[str, float]:
    """Family → million parameters of every row of the page."""
    # A net that was built shallower says so behind the number.
    found = re.findall(r"^\| (\S+) \| `\S+` \| ([\d.]+)[^|]*\|", text, flags=re.M)
    return {family: float(millions) for family, millions in found}


def of_this_week(text: str, *, week: int) -> list[str]:
    """The models of the page that are tested in an ISO week: small ones, in turn."""
    parameters = parameters_of(text)
    small = [
        model
        for family, model in sorted(coverage_page.passing(text).items())
        if parameters[family] <= MILLION_PARAMETERS
    ]
    return [small[(week * NUM_FAMILIES + i) % len(small)] for i in range(min(NUM_FAMILIES, len(small)))]


def test_every_small_family_has_its_week() -> None:
    text = PAGE.read_text(encoding="utf-8")
    seen = {model for week in range(1, 53) for model in of_this_week(text, week=week)}
    parameters = parameters_of(text)
    passing = coverage_page.passing(text)
    assert seen == {model for family, model in passing.items() if parameters[family] <= MILLION_PARAMETERS}


@pytest.mark.slow
def test_what_passes_in_the_page_still_passes(tmp_path: Path) -> None:
    models = of_this_week(PAGE.read_text(encoding="utf-8"), week=datetime.now(UTC).isocalendar().week)
    assert models
    run = CoverageRun(home=tmp_path, config=ExportConfig(), limit_s=900)
    failed = {row["family"]: row["problem"] for row in run.cover(models) if not row["passed"]}
    assert not failed, f"passing in docs/coverage.md, failing now: {failed}"
    assert read_results(run.state).keys() == set(models)
