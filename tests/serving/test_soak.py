"""A short run of benchmarks/soak.py: reloads under load, malformed messages, killed clients, full disks, a corrupted
version, a stop while requests are computed. `make soak` is the long one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def soak(*flags: str) -> dict[str, Any]:
    """The report of a run that found nothing."""
    run = subprocess.run(
        [sys.executable, SOAK, "--seed=1", *flags], check=False, capture_output=True, text=True, timeout=600
    )
    assert run.stdout, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    assert report["problems"] == []
    assert run.returncode == 0
    return report


@pytest.mark.slow
def test_a_short_soak_leaves_no_problem() -> None:
    report = soak("--reloads=20", "--messages=1500")
    assert report["reloads"]["reloads"] == 20
    assert sum(report["malformed"]["answers"].values()) == 1500
    assert report["malformed"]["answers"]["HTTP 400"] > 100
    assert report["malformed"]["answers"]["gRPC INVALID_ARGUMENT"] > 50
    assert set(report["load"]["answers"]) == {"GrpcClient", "RestClient"}
    assert report["stop"]["answered while stopping"] == 3


@pytest.mark.slow
def test_a_shorter_one_with_batching() -> None:
    report = soak("--reloads=12", "--messages=500", "--batching")
    assert report["reloads"]["reloads"] == 12
    assert sum(report["malformed"]["answers"].values()) == 500
    assert report["stop"]["answered while stopping"] == 3
