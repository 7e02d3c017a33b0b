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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import tensorflow as tf
from google.protobuf import json_format
from PIL import Image
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline import evaluator, image_example_gen
from isthmus.tfx_pipeline.beam_options import beam_args, engine_args
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.config import EvaluationGate
from isthmus.tfx_pipeline.predict import predict

LABELS = ["blue", "green", "red"]


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


def run_beam(
    executor_class: Any, args: list[str], inputs: Any, outputs: Any, properties: dict[str, Any]
) -> None:
    """Run a Beam component's executor with these options."""
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=args)
    for artifact in outputs.values():
        Path(artifact.uri).mkdir(parents=True, exist_ok=True)
    executor_class(context).Do(
        {k: [v] for k, v in inputs.items()}, {k: [v] for k, v in outputs.items()}, properties
    )


def records(folder: Path) -> list[bytes]:
    """Every record below a folder, sorted: how they are spread over files is the runner's business."""
    found = []
    for file in sorted(folder.glob("data_tfrecord*")):
        found += [bytes(record) for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator()]
    return sorted(found)


def images_below(root: Path, num_per_class: int) -> Path:
    """Tiny images, all different, in every split and class."""
    random = np.random.default_rng(3)
    for split in ("train", "val", "test"):
        for label in LABELS:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(num_per_class):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return root


def example_gen_properties(root: Path) -> dict[str, Any]:
    """ImageExampleGen's parameters for a folder with its own splits."""
    from isthmus.tfx_pipeline.sources import Source

    source = Source(pattern=str(root), path=str(root), kind="folder")
    return {
        "input_base": source.pattern,
        "source": json.dumps(source.properties()),
        "splits": json.dumps(["train", "val", "test"]),
        "labels": json.dumps(LABELS),
        "fingerprint": "f",
        "code": "c",
    }


def examples_at(uri: Path) -> Any:
    """An Examples artifact with the three splits."""
    examples = standard_artifacts.Examples()
    examples.uri = str(uri)
    examples.splits = ["train", "val", "test"]
    return examples


HERE = beam_args(workers=1)


@pytest.mark.slow
def test_the_same_examples_and_statistics_as_in_memory(engine: Any, tmp_path: Path) -> None:
    root = images_below(tmp_path / "images", 20)
    _, pool, args = engine()
    results = {}
    for name, options in (("here", HERE), ("elsewhere", args)):
        examples, statistics = (
            examples_at(tmp_path / name / "examples"),
            standard_artifacts.ExampleStatistics(),
        )
        statistics.uri = str(tmp_path / name / "statistics")
        run_beam(
            image_example_gen.Executor, options, {}, {"examples": examples}, example_gen_properties(root)
        )
        run_beam(
            statistics_gen.Executor,
            options,
            {"examples": examples},
            {"statistics": statistics},
            {"exclude_splits": "[]"},
        )
        results[name] = (
            {split: records(Path(examples.uri, f"Split-{split}")) for split in ("train", "val", "test")},
            json.loads(Path(examples.uri, "report.json").read_text()),
            {split: numbers_of(Path(statistics.uri, f"Split-{split}")) for split in ("train", "val", "test")},
        )
    assert [len(found) for found in results["here"][0].values()] == [60, 60, 60]
    assert results["elsewhere"] == results["here"]
    # The work was done by processes that the pool started.
    assert "Starting worker with command" in (tmp_path / "engine" / "worker_pool_main.log").read_text()
    assert pool.process.poll() is None


def numbers_of(folder: Path) -> dict[str, Any]:
    """{feature: (records that have it, mean)} of a split's statistics."""
    import tensorflow_data_validation as tfdv

    statistics = tfdv.load_stats_binary(str(folder / "FeatureStats.pb"))
    return {
        feature.path.step[0]: (
            feature.num_stats.common_stats.num_non_missing
            or feature.string_stats.common_stats.num_non_missing,
            pytest.approx(feature.num_stats.mean),
        )
        for feature in statistics.datasets[0].features
    }


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
    gate = EvaluationGate(min_accuracy=0.2, max_accuracy_drop=0.05, min_slice_images=10)
    champion = make_model()
    champion.set_int_custom_property(HAS_MODEL, 1)
    found = {}
    for name, options in (("here", HERE), ("elsewhere", args)):
        outputs = {
            "evaluation": artifact_at(standard_artifacts.ModelEvaluation, tmp_path / name / "evaluation"),
            "blessing": artifact_at(standard_artifacts.ModelBlessing, tmp_path / name / "blessing"),
        }
        run_beam(
            evaluator.Executor,
            options,
            {"examples": examples, "model": make_model(quality="bad"), "baseline_model": champion},
            outputs,
            {
                "eval_config": json_format.MessageToJson(evaluator.eval_config(gate)),
                "example_splits": '["test"]',
                "gate": canonical_json(asdict(gate)),
            },
        )
        evaluation, blessing = outputs["evaluation"], outputs["blessing"]
        found[name] = (
            evaluator.read_evaluation(evaluation),
            evaluator.refusals(evaluation),
            blessing.get_int_custom_property("blessed"),
        )
    assert found["elsewhere"] == found["here"]
    evaluation, reasons, blessed = found["elsewhere"]
    assert blessed == 0
    assert "lower than the champion's" in reasons[0]
    assert (evaluation.whole.num_images, len(evaluation.slices)) == (30, 5)


@pytest.mark.slow
def test_the_same_predictions_as_in_memory(
    engine: Any, make_bundle: Callable[..., Path], shared_images: Path, tmp_path: Path
) -> None:
    _, _, args = engine()
    tables = {
        name: ds.dataset(
            predict(
                model=str(make_bundle() / "saved_model"),
                data=str(shared_images),
                output=tmp_path / name,
                home=tmp_path / "home",
                shard_size=20,
                batch_size=8,
                further_beam_args=tuple(options),
            ).output,
            format="parquet",
        )
        .to_table()
        .sort_by("path")
        .to_pylist()
        for name, options in (("here", []), ("elsewhere", args))
    }
    assert len(tables["here"]) == len(list(shared_images.rglob("*.png"))) > 20
    for here, elsewhere in zip(tables["here"], tables["elsewhere"], strict=True):
        assert elsewhere.pop("probabilities") == pytest.approx(here.pop("probabilities"), rel=1e-5)
        assert elsewhere == here


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
