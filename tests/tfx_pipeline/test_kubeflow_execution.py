"""The compiled pipeline, executed task by task as a cluster would (see ir_executor), on an S3-compatible store.

One run to a pushed and registered champion; then a worse model, whose run takes the data's tasks from the first (as
Kubeflow's cache does) and ends in one line that says why it was not pushed.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ir_executor
import pytest
import yaml

from isthmus.lineage import registry, tracking
from isthmus.tfx_pipeline import remote

ROOT = "s3://models/team"
RECIPE = {
    "name": "colours",
    "data": {"source": "imagefolder", "root": "."},
    "model": {"name": "test_resnet", "input_size": [3, 8, 8]},
}
DATA_TASKS = ("ImageExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator")


@pytest.fixture(scope="module")
def store(bucket: str) -> dict[str, str]:
    """The environment that leads to the store."""
    assert bucket == ROOT.rsplit("/", maxsplit=1)[0]
    # The server says every request.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.fixture(scope="module")
def tracking_server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server, as the tasks of a cluster have one."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(migrated_store, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
        try:
            _wait_for(f"{uri}/health", server, folder / "log")
            yield uri
        finally:
            server.terminate()
            server.wait(timeout=120)


def _wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for recipes, packages and logs."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Any]:
    """Starts processes with TFX imported; where the store is, they learn from what they are told."""
    server = ir_executor.ForkServer(ir_executor.container_environment(), scratch / "server.log")
    yield server
    server.close()


@pytest.fixture(scope="module")
def compiled(
    server: Any, store: dict[str, str], tracking_server: str, scratch: Path, shared_images: Path
) -> Callable[..., dict[str, Any]]:
    """`isthmus pipeline --runner kubeflow --compile-only`: the spec that it writes."""

    def compile_(bundle: Path, **pipeline: Any) -> dict[str, Any]:
        number = len(list(scratch.glob("*.recipe.yaml")))
        recipe, package = scratch / f"{number}.recipe.yaml", scratch / f"{number}.json"
        values = {
            **RECIPE,
            "pipeline": {"server": {"num_images": 3}, "cluster": {"environment": store}, **pipeline},
        }
        recipe.write_text(yaml.safe_dump(values))
        log = scratch / f"{number}.log"
        arguments = (
            f"--runner kubeflow --image registry.example/isthmus:1 --root {ROOT} --compile-only {package}"
        )
        arguments += (
            f" --config {recipe} --bundle {bundle} --data {shared_images} --tracking-uri {tracking_server}"
        )
        argv = [
            "python",
            "-m",
            "isthmus.cli.main",
            "pipeline",
            *arguments.split(),
            "--home",
            str(scratch / "home"),
        ]
        assert server.run(argv, env=store, log=log) == 0, log.read_text()
        return dict(ir_executor.read_spec(package))

    return compile_


@pytest.fixture(scope="module")
def first_run(
    compiled: Callable[..., dict[str, Any]], make_bundle: Callable[..., Path], server: Any, scratch: Path
) -> tuple[dict[str, Any], Any]:
    """The spec of a good model's pipeline, and its execution to the end."""
    spec = compiled(make_bundle())
    executor = ir_executor.IrExecutor(spec, root=f"{ROOT}/pipeline/colours", server=server, scratch=scratch)
    return spec, executor.run()


def metadata(execution: Any, task: str, output: str) -> dict[str, Any]:
    """What a task said about an output."""
    return dict(execution.artifacts[task][output][0]["metadata"])


@pytest.mark.slow
def test_the_compiled_pipeline_pushes_and_registers(
    first_run: tuple[dict[str, Any], Any], tracking_server: str, scratch: Path
) -> None:
    spec, execution = first_run
    assert set(execution.artifacts) == set(spec["root"]["dag"]["tasks"])
    pushed = metadata(execution, "Pusher", "pushed_model")
    assert pushed["pushed_destination"].startswith(f"{ROOT}/serving/colours/")
    names = {entry.name for entry in remote.files(pushed["pushed_destination"])}
    assert {"saved_model.pb", "assets/labels.txt", "assets/manifest.json"} <= names
    tracking.connect(scratch, tracking_server)
    (version,) = registry.list_versions("colours")
    assert "champion" in version.aliases  # every gate of a promotion was read from the store
    assert version.tag("pushed_path") == pushed["pushed_destination"]
    importer = spec["root"]["dag"]["tasks"]["BundleImporter"]["inputs"]["parameters"]
    assert version.tag("bundle") == importer["bundle"]["runtimeValue"]["constant"]
    assert version.metrics["accuracy"] == 1.0
    # The orchestrator's id of the run, which TFX has no notion of here.
    assert version.tag("mlmd.run") == "run-1"
    # No artifact says that it is on the disk of a container that has gone.
    assert "isthmus-task-" not in json.dumps(execution.artifacts)


@pytest.mark.slow
def test_a_worse_model_is_blocked_with_the_reason(
    first_run: tuple[dict[str, Any], Any],
    compiled: Callable[..., dict[str, Any]],
    make_bundle: Callable[..., Path],
    server: Any,
    scratch: Path,
    tracking_server: str,
) -> None:
    first_spec, first = first_run
    spec = compiled(make_bundle(quality="bad"), evaluation={"min_accuracy": 0.2})
    tasks, first_tasks = spec["root"]["dag"]["tasks"], first_spec["root"]["dag"]["tasks"]
    # Kubeflow's cache compares what the tasks are given: the data's tasks are given the same.
    assert {name for name in tasks if tasks[name] == first_tasks[name]} >= set(DATA_TASKS)
    assert tasks["BundleImporter"] != first_tasks["BundleImporter"]
    before = [entry.name for entry in remote.files(f"{ROOT}/serving/colours")]
    known = ir_executor.Execution(
        artifacts={name: copy.deepcopy(first.artifacts[name]) for name in DATA_TASKS}
    )
    executor = ir_executor.IrExecutor(
        spec, root=f"{ROOT}/pipeline/colours", server=server, scratch=scratch, run_id="run-2"
    )
    with pytest.raises(ir_executor.TaskFailed) as raised:
        executor.run(known=known)
    assert (raised.value.task, raised.value.exit_code) == ("Registrar", 3)
    line = raised.value.error_line()
    assert line.startswith(
        "error: not pushed, because Evaluator: accuracy on the whole split is 0.6667 lower than the champion's"
    )
    assert line.endswith("at most 0.005 is allowed")
    assert [entry.name for entry in remote.files(f"{ROOT}/serving/colours")] == before
    tracking.connect(scratch, tracking_server)
    assert len(registry.list_versions("colours")) == 1
