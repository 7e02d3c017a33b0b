"""Runs a compiled pipeline as a cluster does, without one: the IR is all that it is told.

For every task, in the order of the DAG, whose trigger condition holds: the ExecutorInput is put together as KFP's
driver does (parameters and artifacts resolved, output places below the pipeline root), `{{$}}` in the container's
arguments is replaced by it as KFP's launcher does, the command is started, and what it left in the executor output
file goes to the tasks that depend on it. An importer task is done here, as it is by the service.

Two things are not as on a cluster. There is no image: `python` is this environment's, and a task sees nothing of
the test's own environment but what the IR's `env` and `environment` give it. And importing TFX takes 17 s of CPU: a
fork server imports it once, and each task is a fork of it which then runs `python -m MODULE` with the very
arguments (`runpy`), in a process of its own, and ends with its exit code. Nothing of isthmus is imported before the
fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: Reads one JSON line for each task: {"argv", "env", "log"}; answers with the exit code.
_FORK_SERVER = textwrap.dedent(
    """
    import json, os, runpy, sys
    from isthmus.tfx_pipeline.imports import torch_kept_out
    with torch_kept_out():
        import mlflow, tensorflow_data_validation, tensorflow_model_analysis, tfx.components
        import tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.environ.update(task["env"])
            python, flag, module, *arguments = task["argv"]
            assert (python, flag) == ("python", "-m"), task["argv"]
            sys.argv = [module, *arguments]
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(bool(error.code))
            except BaseException:
                import traceback
                traceback.print_exc()
                code = 1
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
    """
)


class ForkServer:
    """Starts `python -m MODULE …` as forks of a process that has TFX imported."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def run(self, argv: list[str], *, env: dict[str, str], log: Path) -> int:
        """Run one command to its end and return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "env": env, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline()) == "ready\n":
            pass
        assert line, f"the fork server ended with {self._process.wait()}: see {self._log.name}"
        return line

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(timeout=120)
        self._process.stdout.close()
        self._log.close()


@dataclass(kw_only=True)
class TaskFailed(Exception):  # noqa: N818
    """A task ended with another exit code than 0."""

    task: str
    exit_code: int
    log: str

    def error_line(self) -> str:
        """What it printed for a person."""
        lines = [line for line in self.log.splitlines() if line.startswith("error: ")]
        return lines[-1] if lines else ""


@dataclass(kw_only=True)
class Execution:
    """What is known of a run so far."""

    artifacts: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    """{task: {output: RuntimeArtifacts}}"""

    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{task: {output: value}}"""

    logs: dict[str, str] = field(default_factory=dict)
    """{task: what it wrote}"""


class IrExecutor:
    """Executes the tasks of one pipeline spec."""

    def __init__(
        self, spec: dict[str, Any], *, root: str, server: ForkServer, scratch: Path, run_id: str = "run-1"
    ) -> None:
        self.spec, self._root, self._server, self._run_id = spec, root, server, run_id
        self._scratch = scratch
        self._tasks = spec["root"]["dag"]["tasks"]

    def order(self) -> list[str]:
        """Every task after all that it depends on."""
        ordered: list[str] = []
        waiting = dict(self._tasks)
        while waiting:
            ready = sorted(
                name for name, task in waiting.items() if set(task.get("dependentTasks", [])) <= set(ordered)
            )
            assert ready, f"a cycle among {sorted(waiting)}"
            ordered += ready
            for name in ready:
                del waiting[name]
        return ordered

    def run(self, *, known: Execution | None = None) -> Execution:
        """Run every task whose outputs are not known.

        Args:
            known: Outputs of tasks that an earlier run has executed, as a cache would give them.

        Raises:
            TaskFailed: A task failed; those after it are not started.
        """
        execution = known or Execution()
        for name in self.order():
            if name in execution.artifacts:
                continue
            task = self._tasks[name]
            component = self.spec["components"][task["componentRef"]["name"]]
            executor = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]
            inputs = self._inputs(task, execution)
            assert "condition" not in task.get("triggerPolicy", {}), "no task of ours has a condition"
            if "importer" in executor:
                execution.artifacts[name] = self._imported(component, executor["importer"])
                continue
            self._run_container(name, component, executor["container"], inputs, execution)
        return execution

    def _inputs(self, task: dict[str, Any], execution: Execution) -> dict[str, Any]:
        given = task.get("inputs", {})
        values = {}
        for key, spec in given.get("parameters", {}).items():
            if "taskOutputParameter" in spec:
                source = spec["taskOutputParameter"]
                values[key] = execution.parameters[source["producerTask"]][source["outputParameterKey"]]
            else:
                value = spec["runtimeValue"]["constant"]
                values[key] = {"{{$.pipeline_job_uuid}}": self._run_id}.get(value, value)
        artifacts = {
            key: {
                "artifacts": execution.artifacts[spec["taskOutputArtifact"]["producerTask"]][
                    spec["taskOutputArtifact"]["outputArtifactKey"]
                ]
            }
            for key, spec in given.get("artifacts", {}).items()
        }
        return {"parameterValues": values, "artifacts": artifacts}

    def _imported(
        self, component: dict[str, Any], importer: dict[str, Any]
    ) -> dict[str, list[dict[str, Any]]]:
        """What the service does for an importer task: an artifact for a URI that is there already."""
        ((key, spec),) = component["outputDefinitions"]["artifacts"].items()
        uri = importer["artifactUri"]["constant"]
        return {
            key: [
                {
                    "name": f"imported-{key}",
                    "uri": uri,
                    "type": spec["artifactType"],
                    "metadata": importer.get("metadata", {}),
                }
            ]
        }

    def _run_container(
        self,
        name: str,
        component: dict[str, Any],
        container: dict[str, Any],
        inputs: dict[str, Any],
        execution: Execution,
    ) -> None:
        folder = self._scratch / self._run_id / name
        folder.mkdir(parents=True)
        output_file = folder / "outputs" / "output_metadata.json"
        outputs = {
            key: [
                {
                    "name": f"projects/p/artifacts/{self._run_id}-{name}-{key}",
                    "uri": f"{self._root}/{self._run_id}/{name}/{key}",
                    "type": spec["artifactType"],
                    "metadata": {},
                }
            ]
            for key, spec in component.get("outputDefinitions", {}).get("artifacts", {}).items()
        }
        executor_input = {
            "inputs": inputs,
            "outputs": {
                "artifacts": {key: {"artifacts": found} for key, found in outputs.items()},
                "outputFile": str(output_file),
            },
        }
        argv = [
            argument.replace("{{$}}", json.dumps(executor_input))
            for argument in (*container["command"], *container.get("args", []))
        ]
        # What exec() would refuse: Linux' MAX_ARG_STRLEN.
        assert all(len(argument.encode()) < 128 * 1024 for argument in argv)
        env = {pair["name"]: pair["value"] for pair in container.get("env", [])}
        code = self._server.run(argv, env=env, log=folder / "log.txt")
        log = (folder / "log.txt").read_text(errors="replace")
        execution.logs[name] = log
        if code:
            raise TaskFailed(task=name, exit_code=code, log=log)
        told = json.loads(output_file.read_text())
        for key, found in told.get("artifacts", {}).items():
            (artifact,), (reported,) = outputs[key], found["artifacts"]
            # The launcher merges what the task says into what the driver planned.
            artifact["uri"] = reported.get("uri", artifact["uri"])
            artifact["metadata"] = {**artifact["metadata"], **reported.get("metadata", {})}
        execution.artifacts[name] = outputs
        execution.parameters[name] = told.get("parameterValues", {})


def read_spec(package: Path) -> dict[str, Any]:
    """The pipeline spec in a package, as Kubeflow reads it: the first document, JSON being YAML too."""
    document: dict[str, Any] = next(iter(yaml.safe_load_all(package.read_text())))
    return document.get("pipelineSpec", document)


def container_environment(**further: str) -> dict[str, str]:
    """What a container's process starts with: this environment's Python first on PATH, nothing of the test's own."""
    kept = {key: os.environ[key] for key in ("HOME", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**kept, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "2", **further}
