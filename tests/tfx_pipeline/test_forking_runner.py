"""Several worker processes on this machine: the same answers as one gives, and a worker that dies gives none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from beam_runs import (
    HERE,
    about,
    evaluated,
    images_below,
    ingested,
    predictions,
)

from isthmus.tfx_pipeline import fork_server
from isthmus.tfx_pipeline.beam_options import beam_args, start_early

TWO = beam_args(workers=2)


@pytest.mark.slow
def test_the_same_examples_and_statistics_as_of_one(tmp_path: Path) -> None:
    root = images_below(tmp_path / "images", 100)
    results = {
        name: ingested(options, root, tmp_path / name) for name, options in (("one", HERE), ("two", TWO))
    }
    assert [len(found) for found in results["one"][0].values()] == [300, 300, 300]
    assert results["two"] == results["one"]


@pytest.mark.slow
def test_the_same_evaluation_and_predictions_as_of_one(
    examples: Any,
    make_model: Callable[..., Any],
    make_bundle: Callable[..., Path],
    artifact_at: Callable[..., Any],
    shared_images: Path,
    tmp_path: Path,
) -> None:
    one, two = (
        evaluated(options, examples, make_model, artifact_at, tmp_path / name)
        for name, options in (("one", HERE), ("two", TWO))
    )
    assert two == one
    assert two[2] == 0
    model = make_bundle() / "saved_model"
    one_row_each, of_two = (
        predictions(options, model, shared_images, tmp_path / f"predicted by {len(options)}")
        for options in ([], TWO)
    )
    assert len(of_two) == len(list(shared_images.rglob("*.png")))
    assert of_two == about(one_row_each)


def _who(_: int) -> tuple[int, bool]:
    import importlib.util

    try:
        return os.getpid(), importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:
        return os.getpid(), False


def test_two_processes_share_the_work_and_see_no_torch() -> None:
    """TensorFlow may come into a worker with what it is given to do, and TFX takes torch along where it can."""
    parent = os.getpid()

    def check(found: list[tuple[int, bool]]) -> None:
        assert len(found) == 100
        assert len({process for process, _ in found} - {parent}) == 2
        assert not any(torch for _, torch in found)

    with beam.Pipeline(options=PipelineOptions(TWO)) as pipeline:
        found = pipeline | beam.Create(range(100)) | beam.Reshuffle() | beam.Map(_who)
        assert_that(found, check)


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# A thread of Beam's that reads from the dead worker says so by raising.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_fails_the_run() -> None:
    # Beam's runner may see that its channel has closed before it hears who died.
    with (
        pytest.raises(
            RuntimeError, match=r"a worker process of Beam ended with -9|Channel closed prematurely"
        ),
        beam.Pipeline(options=PipelineOptions(TWO)) as pipeline,
    ):
        _ = pipeline | beam.Create(range(100)) | beam.Reshuffle() | beam.Map(_die)


def test_a_worker_that_dies_before_it_asks_for_work_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would ever be heard of it: Beam would wait without end."""
    monkeypatch.setattr(
        fork_server, "_work", os._exit
    )  # With a dictionary: it raises, and the process ends with 1.
    with (
        pytest.raises(RuntimeError, match="a worker process of Beam ended with 1"),
        beam.Pipeline(options=PipelineOptions(TWO)) as pipeline,
    ):
        _ = pipeline | beam.Create(range(100)) | beam.Map(_who)


def test_it_starts_early_where_it_will_be_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(fork_server, "start", lambda: started.append(1))
    start_early(HERE)
    start_early(beam_args(workers=2, further=["--runner=FlinkRunner"]))
    assert not started
    start_early(TWO)
    assert started
