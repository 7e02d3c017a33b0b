"""What a recipe may say about the pipeline's tasks on a cluster: its section `pipeline.cluster`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

#: Ids of the tasks that resources may be given to.
TASKS = (
    "ImageExampleGen",
    "StatisticsGen",
    "ServingExampleGen",
    "ServingStatisticsGen",
    "SchemaGen",
    "ImportSchemaGen",
    "ExampleValidator",
    "DataReport",
    "BundleImporter",
    "ParityValidator",
    "ChampionResolver",
    "Evaluator",
    "ServerValidator",
    "Pusher",
    "Registrar",
)


@dataclass(kw_only=True)
class Resources:
    """What one task may use."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    cpu: float = 2.0
    """Cores."""

    memory_gib: float = 4.0
    """Memory, GiB. Importing TFX takes 1.3 of it."""

    def __post_init__(self) -> None:
        """Refuse what no scheduler grants."""
        if not self.cpu > 0:
            raise ValueError(f"pipeline.cluster: cpu must be > 0 cores, got {self.cpu}")
        if not self.memory_gib > 0:
            raise ValueError(f"pipeline.cluster: memory_gib must be > 0, got {self.memory_gib}")


@dataclass(kw_only=True)
class ClusterConfig:
    """Section `pipeline.cluster`; the local runner has no use for it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    resources: Resources = field(default_factory=Resources)
    """Of every task that `tasks` does not name."""

    tasks: dict[str, Resources] = field(default_factory=dict)
    """{task: what it may use}, such as `ImageExampleGen: {cpu: 8, memory_gib: 16}`."""

    retries: int = 1
    """How often a task that failed is started again. Never the Registrar: it fails to say that a model was refused."""

    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every task, such as `AWS_ENDPOINT_URL`. Not for secrets: they stand in the pipeline."""

    secrets: dict[str, str] = field(default_factory=dict)
    """{environment variable: `secret/key`}: Kubernetes secrets, such as `MLFLOW_TRACKING_PASSWORD: mlflow/password`.
    Kubeflow only; on Vertex the service account stands for them."""

    volumes: dict[str, str] = field(default_factory=dict)
    """{path: PersistentVolumeClaim}, mounted into every task. Kubeflow only."""

    def __post_init__(self) -> None:
        """Refuse what could only fail on the cluster."""
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(
                f"pipeline.cluster.tasks: no task {', '.join(unknown)}; there are {', '.join(TASKS)}"
            )
        if self.retries < 0:
            raise ValueError(f"pipeline.cluster.retries must be ≥ 0, got {self.retries}")
        for variable, text in self.secrets.items():
            secret, _, key = text.partition("/")
            if not secret or not key or "/" in key:
                raise ValueError(f"pipeline.cluster.secrets.{variable}: write SECRET/KEY, got {text!r}")
        for path in self.volumes:
            if not path.startswith("/"):
                raise ValueError(f"pipeline.cluster.volumes: {path!r} is no absolute path")
