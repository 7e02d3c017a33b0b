"""A run on a cluster: look at what was given, upload what is local, compile, and hand the result over.

    job = prepare(name=…, bundle=…, data=…, config=…, tracking_uri=…, target=Target(cluster="kubeflow", …))
    write_package(path, …)  or  submit(job, …)

The containers find everything in the compiled pipeline: the MLflow store, the places of bundle, data and pushed
versions. Nothing is read from the machine that submitted it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isthmus.tfx_pipeline import classes, remote, sources
from isthmus.tfx_pipeline.beam_options import beam_args, runs_elsewhere
from isthmus.tfx_pipeline.cluster_inputs import (
    ClusterBundle,
    bundle_for_cluster,
    content_for_cluster,
    file_for_cluster,
    folder_for_cluster,
    is_mounted,
    source_for_cluster,
)
from isthmus.tfx_pipeline.code import code_keys
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.imports import torch_kept_out
from isthmus.tfx_pipeline.package import Cluster, check_platform, documents
from isthmus.tfx_pipeline.pipeline_names import check_cluster_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isthmus.lineage.config import SigningConfig
    from isthmus.tfx_pipeline.sources import Source

logger = logging.getLogger(__name__)

_ROOTS = {"kubeflow": ("gs", "s3"), "vertex": ("gs",)}
_SERVERS = re.compile(r"(https?|postgresql|mysql|mssql)(\+\w+)?://|databricks")
_CRON = re.compile(r"\S+( \S+){4}")

#: In a container: nothing is kept there, and the registry is a server.
_HOME_IN_CONTAINER = "/tmp/isthmus"


@dataclass(kw_only=True)
class Target:
    """Which cluster, and how the pipeline runs there."""

    cluster: Cluster
    """Kubeflow Pipelines v2, or Vertex AI Pipelines."""

    image: str
    """Container image of every task; tfx_pipeline/Dockerfile builds it."""

    root: str
    """`gs://…`, or for Kubeflow also `s3://…`: below it lie the artifacts, what is uploaded, and the pushed versions
    unless `pipeline.push_to` names another place."""

    endpoint: str | None = None
    """URL of Kubeflow's API, or of a private endpoint of Vertex."""

    project: str | None = None
    """Google Cloud project (Vertex)."""

    region: str | None = None
    """Google Cloud region (Vertex), such as `europe-west4`."""

    service_account: str | None = None
    """Who the tasks are."""

    experiment: str | None = None
    """Experiment of the run; None: the model's name. On Vertex it is the label `isthmus-experiment`."""

    schedule: str | None = None
    """Five fields of cron: start it again and again instead of once."""

    cache: bool = True
    """Whether tasks may take the results of earlier runs."""

    def __post_init__(self) -> None:
        """Refuse what the cluster would.

        Raises:
            PipelineError: The root is not on a store that the cluster writes to, or the schedule is no cron line.
        """
        schemes = _ROOTS[self.cluster]
        if self.root.split("://")[0] not in schemes or not remote.is_remote(self.root):
            remote.check_scheme(self.root)
            known = " or ".join(f"{scheme}://BUCKET/FOLDER" for scheme in schemes)
            raise PipelineError(f"--root {self.root}: the runner {self.cluster} needs {known}")
        self.root = self.root.rstrip("/")
        if self.schedule is not None and not _CRON.fullmatch(self.schedule):
            raise PipelineError(
                f"--schedule {self.schedule!r}: write the five fields of cron, such as '0 3 * * *' (every day at 3)"
            )

    def check_submission(self) -> None:
        """Refuse to submit where it is not said whereto.

        Raises:
            PipelineError: An address is missing.
        """
        if self.cluster == "kubeflow" and not self.endpoint:
            raise PipelineError(
                "--submit needs --endpoint, the URL of Kubeflow Pipelines' API (or --compile-only)"
            )
        missing = [option for option in ("project", "region") if not getattr(self, option)]
        if self.cluster == "vertex" and missing:
            raise PipelineError(f"--submit needs --{' and --'.join(missing)} (or --compile-only)")


@dataclass(kw_only=True)
class Submitted:
    """What a cluster answered."""

    kind: Literal["run", "schedule"]
    """One run, or a schedule that starts runs."""

    id: str
    """The cluster's id of it."""

    url: str
    """Where a person can watch it."""


@dataclass(kw_only=True)
class Job:
    """A compiled pipeline."""

    name: str
    """Registered model name."""

    pipeline_job: dict[str, Any]
    """The PipelineJob as JSON values."""

    package: Sequence[dict[str, Any]]
    """The documents that the cluster takes."""

    places: dict[str, str] = field(default_factory=dict)
    """Where the bundle, the data and the pushed versions are."""


def prepare(
    *,
    name: str,
    bundle: str | Path,
    data_root: Path | None,
    config: PipelineConfig,
    tracking_uri: str | None,
    target: Target,
    signing: SigningConfig | None = None,
) -> Job:
    """Upload what is local and compile the pipeline.

    Args:
        name: Registered model name.
        bundle: The bundle: a folder here, or its URI.
        data_root: Image folder that training prepared; `config.input.path` wins over it, and may be a URI.
        config: The recipe's `pipeline:` section.
        tracking_uri: MLflow's server or database, as the containers reach it.
        target: The cluster.
        signing: Its verification key, or the environment's, must have signed what is pushed.

    Raises:
        PipelineError: The input cannot be used on a cluster; nothing was submitted.
        ExportError: There is no usable bundle.
    """
    check_cluster_name(name, target.cluster)
    _check(config, tracking_uri, target)
    args = beam_args(workers=config.beam_workers, further=config.beam_args)
    opened, source, record = _model_and_images(bundle, data_root, config, target, args=args)
    beside, key = _beside(config, signing, root=target.root, args=args)
    serving = remote.join(config.push_to or remote.join(target.root, "serving"), name)
    logger.info("loading TFX")
    with torch_kept_out():
        from isthmus.tfx_pipeline import kubeflow
        from isthmus.tfx_pipeline import pipeline as pipelines

    built = pipelines.create_pipeline(
        name=name,
        classes_file=content_for_cluster(
            classes.content(opened.manifest["model"]["labels"], source.class_map),
            root=target.root,
            folder="classes",
            name=classes.CLASSES_FILE,
        ),
        dataset=record,
        places=pipelines.Places(
            pipeline_root=remote.join(target.root, "pipeline", name),
            serving=serving,
            data_root=source.path,
            bundle=opened.place,
            home=_HOME_IN_CONTAINER,
            tracking_uri=tracking_uri or "",
            verification_key=key,
        ),
        config=config,
        keys=pipelines.CacheKeys(
            data=source.fingerprint,
            manifest=opened.manifest_sha256,
            champion="",
            code=code_keys(server_binary=config.server.binary),
        ),
        inputs=pipelines.DataInputs(source=source, **beside),
        enable_cache=target.cache,
        on_cluster=True,
    )
    job = kubeflow.compile_job(
        built, image=target.image, config=config.cluster, recurring=target.schedule is not None
    )
    return Job(
        name=name,
        pipeline_job=job,
        package=documents(job, config.cluster, target.cluster),
        places={"bundle": opened.place, "data": source.path, "serving": serving},
    )


def _model_and_images(
    bundle: str | Path, data_root: Path | None, config: PipelineConfig, target: Target, *, args: list[str]
) -> tuple[ClusterBundle, Source, dict[str, Any]]:
    """The bundle, the images and what those are called in the record, where containers can open them."""
    opened = bundle_for_cluster(bundle, root=target.root, volumes=config.cluster.volumes)
    source, record = source_for_cluster(
        config.input,
        data_root=data_root,
        labels=opened.manifest["model"]["labels"],
        root=target.root,
        volumes=config.cluster.volumes,
        beam_args=args,
        recurring=target.schedule is not None,
    )
    return opened, source, record


def _beside(
    config: PipelineConfig, signing: SigningConfig | None, *, root: str, args: list[str]
) -> tuple[dict[str, Any], str]:
    """(what the data half reads besides the images, the verification key or ""), where containers can open them."""
    from isthmus.lineage import signing as signatures

    baseline = folder_for_cluster(
        config.data.drift.baseline, root=root, folder="statistics", key="pipeline.data.drift.baseline"
    )
    key = file_for_cluster(signatures.configured(signing).verification_key, root=root, folder="keys")
    schema = file_for_cluster(config.schema, root=root, folder="schemas")
    return {"schema_file": schema, "serving": _served(config, args), "baseline": baseline}, key or ""


def _served(config: PipelineConfig, args: list[str]) -> Source | None:
    """The prediction log to compare with, which servers write where the cluster can read it."""
    log = config.data.skew.prediction_log
    if log is None:
        return None
    if not remote.is_remote(log):
        raise PipelineError(
            f"pipeline.data.skew.prediction_log {log} is on this machine, where the cluster cannot read it; give a URI"
        )
    return sources.look_at_log(log, beam_args=args)


def submit(job: Job, target: Target) -> Submitted:
    """Start a run, or a schedule, on the cluster.

    Raises:
        PipelineError: The cluster cannot be reached or refuses; the text says why in one line.
    """
    target.check_submission()
    if target.cluster == "vertex":
        from isthmus.tfx_pipeline import vertex

        return vertex.submit(job, target)
    from isthmus.tfx_pipeline import kubeflow_client

    return kubeflow_client.submit(job, target)


def _check(config: PipelineConfig, tracking_uri: str | None, target: Target) -> None:
    """Refuse what no container could use, before anything is read or uploaded."""
    _check_tracking(tracking_uri)
    check_platform(config.cluster, target.cluster)
    _check_serving(config)
    if target.root.startswith("s3://") and runs_elsewhere(config.beam_args):
        raise PipelineError(
            "Beam's workers on other machines open the model with TensorFlow, which reads gs:// and no s3://: "
            "use a root on gs://, or leave Beam inside the tasks (no --beam, no --runner in pipeline.beam_args)"
        )


def _check_serving(config: PipelineConfig) -> None:
    """Refuse a folder that would be a container's own: what is pushed there is gone when the task ends."""
    place = config.push_to
    if place is None:
        return
    remote.check_scheme(place)
    if not remote.is_remote(place) and not is_mounted(place, config.cluster.volumes):
        raise PipelineError(
            f"pipeline.push_to {place}: a task would push to its container's own disk; give gs:// or s3://, a folder "
            "below a volume of pipeline.cluster.volumes, or leave it out (serving/ below --root)"
        )


def _check_tracking(tracking_uri: str | None) -> None:
    """Refuse a store that is a file of this machine: champion and registration are looked up in the containers."""
    if tracking_uri is None or not _SERVERS.match(tracking_uri):
        given = f"got {tracking_uri}" if tracking_uri else "none is given"
        raise PipelineError(
            "on a cluster the tasks need an MLflow server that they can reach, as --tracking-uri http://HOST:PORT "
            f"or a database; {given}"
        )
