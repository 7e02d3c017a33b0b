"""What a cluster is handed: documents around the compiled pipeline.

Both clusters take the same IR. Vertex wants a PipelineJob (the IR and where to write), Kubeflow the IR alone, with a
second document for what is Kubernetes' (secrets, volumes). Nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from isthmus.tfx_pipeline.cluster_config import ClusterConfig
from isthmus.tfx_pipeline.errors import PipelineError

Cluster = Literal["kubeflow", "vertex"]


def platform_spec(job: dict[str, Any], config: ClusterConfig) -> dict[str, Any] | None:
    """The second document of a Kubeflow package: secrets and volumes of every task; None where there are none."""
    extensions: dict[str, Any] = {}
    if config.secrets:
        extensions["secretAsEnv"] = [
            {
                "secretName": text.split("/")[0],
                "secretNameParameter": {"runtimeValue": {"constant": text.split("/")[0]}},
                "keyToEnv": [{"secretKey": text.split("/")[1], "envVar": variable}],
            }
            for variable, text in sorted(config.secrets.items())
        ]
    if config.volumes:
        extensions["pvcMount"] = [
            {
                "constant": claim,
                "pvcNameParameter": {"runtimeValue": {"constant": claim}},
                "mountPath": path,
            }
            for path, claim in sorted(config.volumes.items())
        ]
    if not extensions:
        return None
    executors = dict.fromkeys(sorted(job["pipelineSpec"]["deploymentSpec"]["executors"]), extensions)
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def check_platform(config: ClusterConfig, cluster: Cluster) -> None:
    """Refuse what Vertex has no notion of.

    Raises:
        PipelineError: Secrets or volumes of Kubernetes were asked for on Vertex.
    """
    if cluster == "vertex" and (config.secrets or config.volumes):
        raise PipelineError(
            "pipeline.cluster.secrets and volumes are Kubernetes'; on Vertex give the service account the roles it "
            "needs, and put the data on gs://"
        )


def documents(job: dict[str, Any], config: ClusterConfig, cluster: Cluster) -> Sequence[dict[str, Any]]:
    """What a package for a cluster holds: Vertex's PipelineJob, or Kubeflow's spec and platform spec."""
    if cluster == "vertex":
        return (job,)
    platform = platform_spec(job, config)
    return (job["pipelineSpec"],) if platform is None else (job["pipelineSpec"], platform)


def write_package(path: Path, package: Sequence[dict[str, Any]]) -> None:
    """Write a package as JSON or YAML, by the file's name; several documents need YAML.

    Raises:
        PipelineError: The name says neither, or JSON cannot hold it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".yaml", ".yml"):
        path.write_text(yaml.safe_dump_all(package, sort_keys=True), encoding="utf-8")
        return
    if path.suffix != ".json":
        raise PipelineError(f"{path}: name the file .json or .yaml")
    if len(package) > 1:
        raise PipelineError(
            f"{path}: secrets and volumes are a second document, which JSON has not: use .yaml"
        )
    path.write_text(json.dumps(package[0], indent=1, sort_keys=True) + "\n", encoding="utf-8")


def innermost(error: BaseException) -> str:
    """What it was in the end, on one line: HTTP clients wrap a refused connection two or three times."""
    inner: Any = error
    while True:
        candidates = (getattr(inner, "reason", None), *inner.args[:1])
        deeper = next((found for found in candidates if isinstance(found, BaseException)), None)
        if deeper is None:
            return " ".join(str(inner).split())[:300]
        inner = deeper
