"""One run of the pipeline on this machine: from a bundle and an image folder to a pushed, registered version.

The order: look at what was given, take the lock, ask the registry who is champion, build the pipeline, run it,
and say what came of it. Nothing heavy is imported before the input has been looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage.files import sha256_file
from isthmus.tfx_pipeline import classes, remote, sources
from isthmus.tfx_pipeline.beam_options import beam_args, start_early
from isthmus.tfx_pipeline.code import code_keys
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.errors import NotPushedError, PipelineError
from isthmus.tfx_pipeline.heads import check_head
from isthmus.tfx_pipeline.imports import torch_kept_out
from isthmus.tfx_pipeline.pipeline_names import check_local_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from isthmus.export.bundle import Bundle
    from isthmus.lineage.config import SigningConfig
    from isthmus.tfx_pipeline.data_pipeline import DataInputs
    from isthmus.tfx_pipeline.runner import Outcome
    from isthmus.tfx_pipeline.sources import Source

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PipelineResult:
    """What a run that succeeded came to."""

    pushed: str
    """The pushed version's directory, or its place in an object store."""

    version: int
    """Its number, the directory's name."""

    metrics: dict[str, float]
    """The Evaluator's numbers: `accuracy`, `num_images`, `accuracy/label:<class>`, `accuracy_change`."""

    registered_version: int
    """The registry's number for it."""

    up_to_date: bool
    """True when this content had been pushed before and nothing was copied."""

    seconds: float
    """Wall time, imports included."""

    cached: list[str] = field(default_factory=list)
    """Components that were taken from the last run."""

    run: list[str] = field(default_factory=list)
    """Components that were run."""


def run_local(
    *,
    name: str,
    bundle: Path,
    data_root: Path | None,
    config: PipelineConfig,
    home: Path,
    tracking_uri: str | None = None,
    signing: SigningConfig | None = None,
) -> PipelineResult:
    """Validate a bundle against an image folder and, when every gate is passed, push and register it.

    Args:
        name: Registered model name.
        bundle: The bundle's directory, or a link to it.
        data_root: Image folder that training prepared; `config.input.path` wins over it.
        config: The recipe's `pipeline:` section.
        home: Home folder; versions are pushed to `<home>/serving/<name>/<version>/`.
        tracking_uri: MLflow store; None for the one in the home folder.
        signing: Its verification key, or the environment's, must have signed what is pushed.

    Raises:
        NotPushedError: A gate refused the model, or could not run.
        PipelineError: The input cannot be used, or another run of this pipeline is in progress.
        ExportError: There is no usable bundle.
        LineageError: The registry cannot be reached.
    """
    from isthmus.export import bundle as bundles
    from isthmus.lineage import signing as signatures

    started = time.monotonic()
    check_local_name(name)
    opened = bundles.load(bundle)
    check_head(opened.manifest, bundle=str(opened.path))
    args = beam_args(workers=config.beam_workers, further=config.beam_args)
    labels = opened.manifest["model"]["labels"]
    source = sources.look(config.input, data_root=data_root, labels=labels, beam_args=args)
    log = config.data.skew.prediction_log
    serving = None if log is None else sources.look_at_log(log, beam_args=args)
    if config.schema is not None and not config.schema.is_file():
        raise PipelineError(f"no schema at {config.schema}; leave pipeline.schema out to have one inferred")
    key = signatures.configured(signing).verification_key
    if key is not None and (unsigned := signatures.refusal(opened.saved_model, key)):
        raise PipelineError(f"not pushed, because {unsigned}; export it with the signing key")
    home = home.absolute()
    root = home / "pipeline" / name
    with only_run(root):
        logger.info("bundle %s", opened.path)
        logger.info("images %s (%s)", source.path, source.counts() or source.kind)
        outcomes = _run(
            opened,
            source,
            serving,
            name=name,
            config=config,
            home=home,
            root=root,
            tracking_uri=tracking_uri,
            verification_key=key,
        )
        return _result(outcomes, seconds=time.monotonic() - started)


def _run(
    bundle: Bundle,
    source: Source,
    served: Source | None,
    *,
    name: str,
    config: PipelineConfig,
    home: Path,
    root: Path,
    tracking_uri: str | None,
    verification_key: Path | None,
) -> dict[str, Outcome]:
    """Build the pipeline and run it; returns the outcomes of all components by id."""
    database = home / "metadata.db"
    serving = remote.join(config.push_to or str(home / "serving"), name)
    start_early(beam_args(workers=config.beam_workers, further=config.beam_args))
    champion, registered = _registry_state(name, bundle, home=home, tracking_uri=tracking_uri)
    logger.info("loading TFX")
    started = time.monotonic()
    with torch_kept_out():
        from isthmus.tfx_pipeline import pipeline as pipelines
        from isthmus.tfx_pipeline.publishing import pushed_version
        from isthmus.tfx_pipeline.runner import ReportingRunner

    logger.info("TFX loaded in %.0f s", time.monotonic() - started)
    keys = pipelines.CacheKeys(
        data=source.fingerprint,
        manifest=sha256_file(bundle.path / "manifest.json"),
        champion=champion,
        code=code_keys(server_binary=config.server.binary),
    )
    connection = pipelines.local_metadata(database)
    clear_stale(root, connection, name)
    # What the cache believes to be done may have been undone behind its back.
    uncached = []
    if pushed_version(serving, bundle.manifest["saved_model_digest"]) is None:
        uncached += ["Pusher", "Registrar"]
    elif not registered:
        uncached += ["Registrar"]
    built = pipelines.create_pipeline(
        name=name,
        classes_file=classes_file(bundle.manifest["model"]["labels"], source, root),
        dataset=source.record(),
        places=pipelines.Places(
            pipeline_root=str(root),
            serving=serving,
            data_root=source.path,
            bundle=str(bundle.path),
            home=str(home),
            tracking_uri=tracking_uri or "",
            verification_key=str(verification_key.absolute()) if verification_key else "",
        ),
        config=config,
        keys=keys,
        inputs=_data_inputs(config, source, served, connection=connection, root=root),
        metadata_connection_config=connection,
    )
    return execute(ReportingRunner, built, uncached)


def execute(runner_class: Any, built: Any, uncached: list[str]) -> dict[str, Outcome]:
    """Run a pipeline, a line for each component as it ends; returns the outcomes by id.

    Raises:
        NotPushedError: A component could not run.
        PipelineError: One could not run after the push.
    """
    from isthmus.tfx_pipeline.runner import ComponentFailed
    from isthmus.tfx_pipeline.story import reasons_so_far, told

    outcomes: dict[str, Outcome] = {}

    def report(outcome: Outcome) -> None:
        outcomes[outcome.node] = outcome
        how = "cached" if outcome.cached else f"{outcome.seconds:.1f} s"
        logger.info("%2d/%d %-17s %8s  %s", outcome.number, outcome.total, outcome.node, how, told(outcome))

    try:
        runner_class(report, uncached=uncached).run(built)
    except ComponentFailed as failed:
        cause = failed.__cause__
        text = (
            str(cause) if hasattr(cause, "exit_code") else f"could not run: {type(cause).__name__}: {cause}"
        )
        if _was_pushed(outcomes):
            raise PipelineError(
                f"pushed, but not registered, because {failed.node} {' '.join(text.split())[:1000]}; "
                "run the same command again"
            ) from cause
        raise NotPushedError([*reasons_so_far(outcomes), f"{failed.node}: {text[:1000]}"]) from cause
    return outcomes


def _was_pushed(outcomes: dict[str, Outcome]) -> bool:
    pushed = outcomes["Pusher"].outputs["pushed_model"] if "Pusher" in outcomes else None
    return pushed is not None and pushed.get_int_custom_property("pushed") == 1


def _result(outcomes: dict[str, Outcome], *, seconds: float) -> PipelineResult:
    """Read the result out of the artifacts; raises NotPushedError when there is none."""
    from isthmus.tfx_pipeline.evaluator import read_evaluation
    from isthmus.tfx_pipeline.pusher import FRESH
    from isthmus.tfx_pipeline.registrar import REGISTERED_VERSION
    from isthmus.tfx_pipeline.story import reasons_so_far

    pushed = outcomes["Pusher"].outputs["pushed_model"]
    if not _was_pushed(outcomes):
        raise NotPushedError(reasons_so_far(outcomes))
    destination = pushed.get_string_custom_property("pushed_destination")
    up_to_date = outcomes["Pusher"].cached or pushed.get_int_custom_property(FRESH) == 0
    result = PipelineResult(
        pushed=destination,
        version=int(pushed.get_string_custom_property("pushed_version")),
        metrics=read_evaluation(outcomes["Evaluator"].outputs["evaluation"]).metrics(),
        registered_version=outcomes["Registrar"]
        .outputs["registration"]
        .get_int_custom_property(REGISTERED_VERSION),
        up_to_date=up_to_date,
        seconds=seconds,
        cached=[node for node, outcome in outcomes.items() if outcome.cached],
        run=[node for node, outcome in outcomes.items() if not outcome.cached],
    )
    if not result.run:
        logger.info("nothing has changed: all %d components are cached", len(result.cached))
    logger.info(
        "%s %s (registered version %d, accuracy %.4f)",
        "up to date: already pushed to" if up_to_date else "pushed to",
        destination,
        result.registered_version,
        result.metrics["accuracy"],
    )
    return result


def _registry_state(name: str, bundle: Bundle, *, home: Path, tracking_uri: str | None) -> tuple[str, bool]:
    """(digest of the champion to compare with or "", whether this very content is registered)."""
    from isthmus.lineage import registry, tracking

    home.mkdir(parents=True, exist_ok=True)
    _check_link(bundle, tracking.connect(home, tracking_uri))
    digest = bundle.manifest["saved_model_digest"]
    champion = registry.champion(name)
    registered = bool(registry.find(name, saved_model_digest=digest))
    if champion is None or champion.saved_model_digest == digest:
        return "", registered
    return champion.saved_model_digest or f"version {champion.version}", registered


def _check_link(bundle: Bundle, client: MlflowClient) -> None:
    """Refuse a bundle whose record is in another store: the version could not be traced back from this one."""
    from isthmus.export.recording import is_known

    if not is_known(bundle, client):
        model_id = bundle.manifest["export"]["mlflow"]["saved_model_id"]
        raise PipelineError(
            f"{bundle.path} was exported with another MLflow store: its model {model_id} is not in "
            f"{client.tracking_uri}; give that store as --tracking-uri, or export again with this one"
        )


def _data_inputs(
    config: PipelineConfig, source: Source, served: Source | None, *, connection: Any, root: Path
) -> DataInputs:
    """What the data half reads, the schema and the earlier statistics included."""
    from isthmus.tfx_pipeline.data_pipeline import DataInputs

    return DataInputs(
        source=source,
        schema_file=_curated_schema(config, root),
        serving=served,
        baseline=_baseline(config, source, connection, root),
    )


def _baseline(config: PipelineConfig, source: Source, connection: Any, root: Path) -> str:
    """The statistics of earlier data to compare with, given or found; "" for none."""
    from isthmus.tfx_pipeline import baselines

    given = config.data.drift.baseline
    if given is None:
        accepted = baselines.accepted_data(connection, str(root))
        return baselines.baseline_of(accepted, fingerprint=source.fingerprint, span=source.span)
    if not Path(given, "Split-train").is_dir() and not remote.is_remote(given):
        raise PipelineError(
            f"no statistics at {given}: pipeline.data.drift.baseline is the folder of a StatisticsGen's output, "
            "with Split-train inside"
        )
    return given


def classes_file(labels: list[str], source: Source, root: Path) -> str:
    """The model's labels and the source's names for them, as a file below the pipeline's root."""
    return _filed(classes.content(labels, source.class_map), root / "classes", classes.CLASSES_FILE)


def _curated_schema(config: PipelineConfig, root: Path) -> str | None:
    """A copy of the curated schema."""
    if config.schema is None:
        return None
    return _filed(config.schema.read_bytes(), root / "schemas", "schema.pbtxt")


def _filed(content: bytes, folder: Path, name: str) -> str:
    """A file in a folder named by its content: TFX's cache looks at the path alone."""
    target = folder / hashlib.sha256(content).hexdigest()[:16] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".tmp")
    beside.write_bytes(content)
    os.replace(beside, target)
    return str(target)


_LOCK = ".lock"


def clear_stale(root: Path, connection: Any, name: str) -> None:
    """Remove the artifacts of a pipeline that the metadata do not know, because the database was lost or replaced.

    They are filed under MLMD's numbers: old ones would mix with new ones.
    """
    from tfx.dsl.compiler import constants
    from tfx.orchestration import metadata

    with metadata.Metadata(connection) as handle:
        if handle.store.get_context_by_type_and_name(constants.PIPELINE_CONTEXT_TYPE_NAME, name) is not None:
            return
    for entry in root.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def only_run(root: Path) -> Iterator[None]:
    """Refuse a second run of the same pipeline. The lock goes with the process, however that ends."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / _LOCK, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PipelineError(
                f"another run of this pipeline is in progress (process {lock.read().strip() or 'unknown'}); "
                f"wait for it to end ({root / _LOCK})"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
