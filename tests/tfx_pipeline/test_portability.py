"""Beam's portability protocol, as Flink, Spark and Dataflow use it: a job service, and SDK workers in processes of
their own that are told nothing but what travels (`--beam flink`'s own options).

Python's job service stands for the engine. It has no recovery of its own (when a worker dies it waits for ever), so
what a dead worker means is tested one level up: the task fails, and the cluster's retry of it, which writes to the
very same place, must give what an undisturbed run gives.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from beam_runs import (
    HERE,
    about,
    evaluated,
    example_gen_properties,
    examples_at,
    images_below,
    ingested,
    predictions,
    records,
    run_beam,
)

from isthmus.tfx_pipeline import image_example_gen
from isthmus.tfx_pipeline.beam_options import engine_args


@dataclass
class Process:
    """A service in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def stop(self) -> None:
        """End it and whatever it has started."""
        for child in children(self.process.pid):
            os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait(timeout=30)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
    return [int(text) for text in " ".join(listed).split()]


def start(module: str, folder: Path, *, port_option: str) -> Process:
    """Start a service of Beam's on a free port; `python` is this environment's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / f"{module.rsplit('.', maxsplit=1)[-1]}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"{port_option}={port}"],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
        )
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None, f"{module} ended; see {folder}"
        assert time.monotonic() < deadline, f"{module} does not listen; see {folder}"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return Process(process, port)
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """TFX reads absl's flags from the command line when Beam runs elsewhere; pytest's mean something else."""
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[], tuple[Process, Process, list[str]]]]:
    """Starts a job service and a worker pool; gives both and Beam's options for them."""
    started: list[Process] = []

    def make() -> tuple[Process, Process, list[str]]:
        job_service = start(
            "apache_beam.runners.portability.local_job_service_main",
            tmp_path / "engine",
            port_option="--port",
        )
        pool = start(
            "apache_beam.runners.worker.worker_pool_main", tmp_path / "engine", port_option="--service_port"
        )
        started.extend([job_service, pool])
        args = engine_args(
            "flink",
            root="gs://unused",
            job_endpoint=f"localhost:{job_service.port}",
            worker_pool=f"localhost:{pool.port}",
        )
        return job_service, pool, args

    yield make
    for process in started:
        process.stop()


@pytest.mark.slow
def test_the_same_examples_and_statistics_as_in_memory(engine: Any, tmp_path: Path) -> None:
    root = images_below(tmp_path / "images", 20)
    _, pool, args = engine()
    results = {
        name: ingested(options, root, tmp_path / name)
        for name, options in (("here", HERE), ("elsewhere", args))
    }
    assert [len(found) for found in results["here"][0].values()] == [60, 60, 60]
    assert results["elsewhere"] == results["here"]
    # The work was done by processes that the pool started.
    assert "Starting worker with command" in (tmp_path / "engine" / "worker_pool_main.log").read_text()
    assert pool.process.poll() is None


@pytest.mark.slow
def test_the_same_evaluation_as_in_memory(
    engine: Any,
    examples: Any,
    make_model: Callable[..., Any],
    artifact_at: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Candidate against champion, slices included: models, extractors and combiners travel to the workers."""
    _, _, args = engine()
    here, elsewhere = (
        evaluated(options, examples, make_model, artifact_at, tmp_path / name)
        for name, options in (("here", HERE), ("elsewhere", args))
    )
    assert elsewhere == here
    evaluation, reasons, blessed = elsewhere
    assert blessed == 0
    assert "lower than the champion's" in reasons[0]
    assert (evaluation.whole.num_images, len(evaluation.slices)) == (30, 5)


@pytest.mark.slow
def test_the_same_predictions_as_in_memory(
    engine: Any, make_bundle: Callable[..., Path], shared_images: Path, tmp_path: Path
) -> None:
    _, _, args = engine()
    here, elsewhere = (
        predictions(options, make_bundle() / "saved_model", shared_images, tmp_path / name)
        for name, options in (("here", []), ("elsewhere", args))
    )
    assert len(here) == len(list(shared_images.rglob("*.png"))) > 20
    assert elsewhere == about(here)


_CLIENT = """
import json, sys
from isthmus.tfx_pipeline.imports import torch_kept_out
with torch_kept_out():
    from tfx.dsl.components.base import base_beam_executor
    from tfx.types import standard_artifacts
    from isthmus.tfx_pipeline import image_example_gen
uri, properties, args = json.loads(sys.argv[1])
examples = standard_artifacts.Examples()
examples.uri = uri
context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=args)
image_example_gen.Executor(context).Do({}, {"examples": [examples]}, properties)
"""


@pytest.mark.slow
def test_a_worker_killed_half_way_changes_nothing(engine: Any, tmp_path: Path) -> None:
    root = images_below(tmp_path / "images", 700)
    properties = example_gen_properties(root)
    undisturbed, retried = examples_at(tmp_path / "undisturbed"), examples_at(tmp_path / "retried")
    run_beam(image_example_gen.Executor, HERE, {}, {"examples": undisturbed}, properties)

    job_service, pool, args = engine()
    Path(retried.uri).mkdir()
    with (tmp_path / "client.log").open("w") as log:
        task = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, json.dumps([retried.uri, properties, args])],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 600
    # Half way: some records are written, into the files that Beam renames at the end.
    while not any(
        path.is_file() and path.stat().st_size for path in Path(retried.uri).rglob("beam-temp-*/*")
    ):
        assert time.monotonic() < deadline, (tmp_path / "client.log").read_text()
        assert task.poll() is None, (tmp_path / "client.log").read_text()
        time.sleep(0.01)
    workers = children(pool.process.pid)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert not list(Path(retried.uri).glob("Split-*/data_tfrecord*")), "it was not half way any more"
    # What an engine reports as a failed job: here the job service goes, and the task that asked it fails.
    job_service.stop()
    assert task.wait(timeout=600) != 0

    # The cluster's retry: the same task, the same place, workers and job service as they are by then.
    _, _, args = engine()
    run_beam(image_example_gen.Executor, args, {}, {"examples": retried}, properties)
    for split in ("train", "val", "test"):
        assert records(Path(retried.uri, f"Split-{split}")) == records(
            Path(undisturbed.uri, f"Split-{split}")
        )
    assert json.loads(Path(retried.uri, "report.json").read_text())["num_images"] == {
        "train": 2100,
        "val": 2100,
        "test": 2100,
    }
    # What the killed attempt has left is nothing that a later component would read.
    pattern = str(Path(retried.uri, "Split-train", "*"))
    assert {Path(path).suffix for path in tf.io.gfile.glob(pattern) if Path(path).is_file()} == {".gz"}
