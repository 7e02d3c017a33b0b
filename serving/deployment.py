"""Everything that runs one model on the real TensorFlow Serving, generated from one description.

python -m isthmus.serving.deployment --name=digits --image=registry.example/digits:1 --output=serving/deploy

writes a Dockerfile, the server's own configuration files, Kubernetes manifests, a KServe InferenceService, Vertex
AI specs, a Grafana dashboard and alert rules. The files in serving/deploy/ are those of the default recipe's model;
nobody edits them.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.serving import deployment_kubernetes, deployment_monitoring
from isthmus.serving.errors import ServingError

__all__ = ["Deployment", "files", "main"]

# The release that tensorflow-serving-api in requirements.lock belongs to.
SERVER_IMAGE = "tensorflow/serving:2.19.1"
USER_ID = 65532
GRPC_PORT, REST_PORT = 8500, 8501
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One model in production."""

    name: str
    """The model's name, and that of every object: lower case letters, digits and -."""

    image: str
    """The image that the Dockerfile builds, with a tag or digest; "latest" is refused."""

    model_claim: str = ""
    """A PersistentVolumeClaim whose folder <name>/ holds the version folders, for pushes that reach running
    servers. Empty: the versions are in the image."""

    stable_version: int = 0
    """What the label stable names. 0: no labels, the newest version serves."""

    canary_version: int = 0
    """What the label canary names; served beside stable. 0: none."""

    min_replicas: int = 2
    """Servers at any time."""

    max_replicas: int = 8
    """Servers under load."""

    cpus: int = 2
    """CPUs of a server."""

    memory: str = "2Gi"
    """Memory of a server: two versions are loaded during a reload."""

    max_batch_size: int = 32
    """Most rows of a batch."""

    batch_timeout_micros: int = 2000
    """How long a batch waits for more rows."""

    latency_target_ms: int = 250
    """Alerts fire when the 99th percentile is above this."""

    def __post_init__(self) -> None:
        if not _DNS_LABEL.fullmatch(self.name):
            raise ServingError(
                f"{self.name!r} is no name for a deployment: lower case letters, digits and -, at most 40"
            )
        tag = self.image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            raise ServingError(f"image {self.image!r} needs a tag of its own (not latest), or a digest")
        if self.canary_version and not self.stable_version:
            raise ServingError("a canary_version needs a stable_version beside it")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ServingError("min_replicas must be 1 or more, and at most max_replicas")

    @property
    def base_path(self) -> str:
        """The model's base path in the container."""
        return f"/models/{self.name}"

    @property
    def arguments(self) -> list[str]:
        """tensorflow_model_server's flags."""
        return [
            f"--port={GRPC_PORT}",
            f"--rest_api_port={REST_PORT}",
            "--rest_api_timeout_in_ms=30000",
            "--model_config_file=/config/models.config",
            "--model_config_file_poll_wait_seconds=30",
            "--enable_batching=true",
            "--batching_parameters_file=/config/batching.config",
            "--monitoring_config_file=/config/monitoring.config",
            "--allow_version_labels_for_unavailable_models=true",
            "--file_system_poll_wait_seconds=10",
            "--enable_grpc_healthcheck_service=true",
        ]


def files(deployment: Deployment) -> dict[str, str]:
    """Every file's text by its relative path."""
    configs = _configs(deployment)
    return {
        "Dockerfile": _dockerfile(deployment),
        **configs,
        "kubernetes.yaml": deployment_kubernetes.manifests(deployment, configs),
        "kserve.yaml": deployment_kubernetes.inference_service(deployment),
        "vertex-model.json": _json(_vertex_model(deployment)),
        "vertex-deploy.json": _json(_vertex_deploy(deployment)),
        "grafana-dashboard.json": _json(deployment_monitoring.dashboard(deployment)),
        "alerts.yaml": deployment_monitoring.alert_rules(deployment),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write into")
    for option, kind in Deployment.__annotations__.items():
        parser.add_argument(f"--{option}", type=kind, default=None)
    values = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    output = values.pop("output")
    try:
        texts = files(Deployment(**values))
    except (ServingError, TypeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output / name).write_text(text)
    return 0


def _configs(deployment: Deployment) -> dict[str, str]:
    labels = {"stable": deployment.stable_version, "canary": deployment.canary_version}
    named = {label: version for label, version in labels.items() if version}
    policy = "".join(f" versions: {version}" for version in sorted(set(named.values())))
    lines = [
        "model_config_list {",
        "  config {",
        f'    name: "{deployment.name}"',
        f'    base_path: "{deployment.base_path}"',
        '    model_platform: "tensorflow"',
        *([f"    model_version_policy {{ specific {{{policy} }} }}"] if named else []),
        *(f'    version_labels {{ key: "{label}" value: {version} }}' for label, version in named.items()),
        "  }",
        "}",
    ]
    sizes = sorted({size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < deployment.max_batch_size})
    batching = [
        f"max_batch_size {{ value: {deployment.max_batch_size} }}",
        f"batch_timeout_micros {{ value: {deployment.batch_timeout_micros} }}",
        f"num_batch_threads {{ value: {deployment.cpus} }}",
        "max_enqueued_batches { value: 100 }",
        *(f"allowed_batch_sizes: {size}" for size in [*sizes, deployment.max_batch_size]),
    ]
    monitoring = 'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }'
    return {
        "models.config": "\n".join(lines) + "\n",
        "batching.config": "\n".join(batching) + "\n",
        "monitoring.config": monitoring + "\n",
    }


def _dockerfile(deployment: Deployment) -> str:
    flags = ",\\\n     ".join(json.dumps(flag) for flag in deployment.arguments)
    versions = "" if deployment.model_claim else f"COPY --chmod=0555 model {deployment.base_path}\n"
    built_from = "" if deployment.model_claim else " with the pushed versions as model/"
    return f"""\
# Generated by isthmus.serving.deployment. Build it in this folder{built_from}:
#   docker build -t {deployment.image} .
FROM {SERVER_IMAGE}
{versions}COPY --chmod=0444 models.config batching.config monitoring.config /config/
USER {USER_ID}:{USER_ID}
EXPOSE {GRPC_PORT} {REST_PORT}
ENTRYPOINT ["/usr/bin/tensorflow_model_server"]
CMD [{flags}]
"""


def _vertex_model(deployment: Deployment) -> dict[str, Any]:
    """The body of projects.locations.models.upload; a health route that is 200 only with a version available."""
    return {
        "model": {
            "displayName": deployment.name,
            "containerSpec": {
                "imageUri": deployment.image,
                "args": deployment.arguments,
                "ports": [{"containerPort": REST_PORT}],
                "grpcPorts": [{"containerPort": GRPC_PORT}],
                "predictRoute": f"/v1/models/{deployment.name}:predict",
                "healthRoute": f"/v1/models/{deployment.name}/metadata",
                "deploymentTimeout": "1200s",
            },
        }
    }


def _vertex_deploy(deployment: Deployment) -> dict[str, Any]:
    """The body of endpoints.deployModel; MODEL is what upload answered. "0" is the model of this request."""
    return {
        "deployedModel": {
            "model": "MODEL",
            "displayName": deployment.name,
            "dedicatedResources": {
                "machineSpec": {"machineType": f"n1-standard-{max(deployment.cpus, 2)}"},
                "minReplicaCount": deployment.min_replicas,
                "maxReplicaCount": deployment.max_replicas,
            },
        },
        "trafficSplit": {"0": 100},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
