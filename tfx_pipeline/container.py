"""What a cluster starts for every task of the pipeline, in the image's own Python:

    python -m isthmus.tfx_pipeline.container --executor_class_path X --json_serialized_invocation_args {{$}} …

It takes TFX's arguments and calls TFX's own entry point (`kubeflow_v2_run_executor`). Around that it does what the
entry point leaves out:

- Artifacts on an object store are brought to this machine and results taken back. TensorFlow 2.21 opens gs:// but
  no s3://, and much of TFX and all of a SavedModel's loading go through TensorFlow. Only where Beam's workers are
  elsewhere (Dataflow, Flink, Spark) do Beam's components get the places themselves: a worker sees no local copy.
- Artifact types of our own are known by name.
- An error that was foreseen ends the task with one line and its exit code, not with a traceback.
- The file that tells the orchestrator what came out is written last, when everything it names is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.tfx_pipeline import remote
from isthmus.tfx_pipeline.beam_options import runs_elsewhere, start_early
from isthmus.tfx_pipeline.imports import torch_kept_out

COMMAND = ("python", "-m", "isthmus.tfx_pipeline.container")
"""The command of every task in the compiled pipeline."""

_ENTRY_POINT = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"

#: Parameters that name a file, or a folder, which a component opens as one of this machine.
_FILE_PARAMETERS = ("classes_file", "schema_file", "verification_key")
_FOLDER_PARAMETERS = ("baseline",)


class Staging:
    """The executor's input and output as the executor sees them: everything remote is a folder of this machine."""

    def __init__(self, executor_input: dict[str, Any], scratch: Path) -> None:
        """Plan; nothing is copied yet.

        Args:
            executor_input: KFP's ExecutorInput as JSON.
            scratch: An empty folder.
        """
        self._scratch = scratch
        self._remote_of: dict[str, str] = {}
        self._outputs: list[str] = []
        self.executor_input = json.loads(json.dumps(executor_input))
        outputs = self.executor_input["outputs"]
        self._output_file = outputs["outputFile"]
        outputs["outputFile"] = str(scratch / "task" / "executor_output.json")

    def fetch(self) -> None:
        """Bring the inputs, and give each output a folder here.

        Raises:
            PipelineError: An input is not there, or the store refuses.
        """
        for key, number, artifact in _artifacts(self.executor_input.get("inputs", {})):
            if remote.is_remote(artifact["uri"]):
                folder = self._scratch / "inputs" / key / str(number)
                # ChampionResolver's output is empty where nobody is champion.
                remote.fetch_tree(artifact["uri"], folder, may_be_empty=True)
                self._replace(artifact, folder)
        for key, number, artifact in _artifacts(self.executor_input["outputs"]):
            if remote.is_remote(artifact["uri"]):
                folder = self._scratch / "outputs" / key / str(number)
                folder.mkdir(parents=True)
                self._outputs.append(str(folder))
                self._replace(artifact, folder)
        values = self.executor_input.get("inputs", {}).get("parameterValues", {})
        for name in _FILE_PARAMETERS:
            if remote.is_remote(values.get(name, "")):
                path = self._scratch / "parameters" / values[name].rsplit("/", maxsplit=1)[-1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(remote.read_bytes(values[name]))
                values[name] = str(path)
        for name in _FOLDER_PARAMETERS:
            if remote.is_remote(values.get(name, "")):
                folder = self._scratch / "parameters" / name
                remote.fetch_tree(values[name], folder)
                values[name] = str(folder)

    def _replace(self, artifact: dict[str, Any], folder: Path) -> None:
        self._remote_of[str(folder)] = artifact["uri"].rstrip("/")
        artifact["uri"] = str(folder)

    def send(self) -> None:
        """Take the outputs to their places, then write the file that the orchestrator reads.

        What an attempt that failed has left at a place goes: its shards would count beside ours.

        Raises:
            PipelineError: The store refuses.
        """
        for folder in self._outputs:
            remote.replace_tree(Path(folder), self._remote_of[folder])
        told = Path(self.executor_input["outputs"]["outputFile"]).read_text(encoding="utf-8")
        # Artifacts name each other, too: TFX's Evaluator notes the model's place in the blessing.
        for folder, place in self._remote_of.items():
            told = told.replace(folder, place)
        _write_output_file(self._output_file, told)


def _write_output_file(place: str, text: str) -> None:
    if remote.is_remote(place):
        remote.write_bytes(place, text.encode())
        return
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _artifacts(spec: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """(key, place in its list, RuntimeArtifact) of every artifact in an ExecutorInput's `inputs` or `outputs`."""
    return [
        (key, number, artifact)
        for key, held in sorted(spec.get("artifacts", {}).items())
        for number, artifact in enumerate(held.get("artifacts", []))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task. Returns 0, or the exit code of an error that was foreseen."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    known, further = parser.parse_known_args(argv)
    executor_input = json.loads(known.json_serialized_invocation_args)
    start_early(further)
    with torch_kept_out():
        import importlib

        entry_point = importlib.import_module(_ENTRY_POINT)
        _name_artifact_types()
    try:
        with tempfile.TemporaryDirectory(prefix="isthmus-task-") as scratch:
            staging = Staging(executor_input, Path(scratch))
            if not (runs_elsewhere(further) and _is_beam(known.executor_class_path)):
                staging.fetch()
            arguments = [
                "--executor_class_path",
                known.executor_class_path,
                "--json_serialized_invocation_args",
                json.dumps(staging.executor_input),
                *further,
            ]
            entry_point.main(entry_point._parse_flags(arguments))
            staging.send()
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return int(exit_code)
    return 0


def _name_artifact_types() -> None:
    """Tell TFX where our types are: the IR has only their names, which TFX takes for import paths."""
    from tfx.orchestration.kubeflow.v2 import compiler_utils
    from tfx.types.artifact import Artifact

    from isthmus.tfx_pipeline import artifacts

    for kind in vars(artifacts).values():
        if isinstance(kind, type) and issubclass(kind, Artifact) and kind is not Artifact:
            name: Any = getattr(kind, "TYPE_NAME")  # noqa: B009 - TFX sets it on each class
            compiler_utils.TITLE_TO_CLASS_PATH[name] = f"{kind.__module__}.{kind.__qualname__}"


def _is_beam(executor_class_path: str) -> bool:
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.utils import import_utils

    return issubclass(import_utils.import_class_by_path(executor_class_path), BaseBeamExecutor)


if __name__ == "__main__":
    sys.exit(main())
