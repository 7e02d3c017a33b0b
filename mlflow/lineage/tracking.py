"""The MLflow store of a home, and the run of each stage: parameters, metrics, data sets.

MLflow is imported by the functions, never by this module (1.5 s). LoggedModels are in `models`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isthmus.lineage.errors import LineageError
from isthmus.lineage.source import git_state

if TYPE_CHECKING:
    import mlflow

log = logging.getLogger(__name__)

Stage = Literal["train", "export", "pipeline"]

TAG = "isthmus."
"""Every tag of ours starts with this."""

_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 8000
_MAX_PARAMS_PER_CALL = 100
_MAX_METRICS_PER_CALL = 1000
_MLFLOW_DIGEST_CHARS = 36
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True, kw_only=True)
class DatasetRef:
    """How MLflow names a data set: `digest` is the first 36 characters (its limit) of `full`."""

    name: str
    digest: str
    full: str


def quiet_mlflow() -> None:
    """Import MLflow with its telemetry off and its notices quiet; call it before your own `import mlflow`.

    MLflow 3 sends usage events over the network unless MLFLOW_DISABLE_TELEMETRY is set. isthmus sets it,
    unless you have set it yourself (to false).
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # GitPython, which MLflow asks for the commit, complains at import where git is not installed.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow  # noqa: F401
    from mlflow.telemetry import set_telemetry_client

    # Of MLflow's own chat types, when mlflow.pyfunc is imported; nothing a user could do about.
    warnings.filterwarnings("ignore", message=".*type hint is inferred as AnyType", category=UserWarning)
    # Somebody may have imported MLflow before us: decide again.
    set_telemetry_client()
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.git_utils").setLevel(logging.ERROR)


def default_tracking_uri(home: Path) -> str:
    """The URI of the SQLite store of a home folder."""
    return f"sqlite:///{Path(home).absolute()}/mlflow.db"


def connect(home: Path, tracking_uri: str | None = None) -> mlflow.MlflowClient:
    """A client on the store, and MLflow's own tracking and registry URI set to it (for `mlflow.log_*`).

    The store is `tracking_uri`, else the environment variable MLFLOW_TRACKING_URI (as everywhere in MLflow),
    else `<home>/mlflow.db`. Touches the network only when the URI does. The first connection to a new SQLite
    file creates its tables (2 s, once), whole or not at all.

    Raises LineageError when the store cannot be opened, with what to do.
    """
    quiet_mlflow()
    import mlflow

    home = Path(home)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    uri = tracking_uri or before or default_tracking_uri(home)
    if uri == default_tracking_uri(home):
        home.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # set_tracking_uri exports its argument to child processes; a child with another --home would follow it.
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before
    try:
        _create_sqlite(uri)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.get_experiment("0")
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise LineageError(_cannot_open(uri, error)) from error
    except Exception as error:
        raise LineageError(_cannot_open(uri, error)) from error
    return client


def _create_sqlite(uri: str) -> None:
    """A new SQLite store's tables, made beside it and renamed.

    MLflow migrates a new file in some sixty transactions; killed between two of them it leaves a file that it
    will never open again ("out-of-date database schema").
    """
    path = _sqlite_file(uri)
    if path is None or "?" in uri or path.name == ":memory:" or path.exists() or not path.parent.is_dir():
        return
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    # The folder itself is the lock: a file would stay in it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # NFS locks no folders; there two first runs at the same moment can meet, and one of them says so.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():
            return
        # A folder of its own: a killed predecessor may have left a journal beside its file.
        staging = path.with_name(f".{path.name}.new")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        engine = create_sqlalchemy_engine(f"sqlite:///{staging / path.name}")
        _initialize_tables(engine)
        engine.dispose()
        (staging / path.name).rename(path)
        staging.rmdir()
    finally:
        os.close(folder)


def _cannot_open(uri: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "out-of-date" in text:
        remedy = f"mlflow db upgrade {uri}"
    elif "401" in text or "not authenticated" in text:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
    else:
        remedy = "check the address, or give another --tracking-uri"
    return f"cannot open the MLflow store {_without_password(uri)}: {text[:300]}; {remedy}"


def _without_password(uri: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def artifact_root(tracking_uri: str) -> Path | None:
    """Where artifacts of a SQLite store go: `mlartifacts` beside the file. None: the server decides."""
    file = _sqlite_file(tracking_uri)
    return file.parent / "mlartifacts" if file is not None else None


def _sqlite_file(tracking_uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix)) if tracking_uri.startswith(prefix) else None


def experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """The id of the experiment of that name, created when missing, by two processes at once if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        root = artifact_root(client.tracking_uri)
        location = (root / re.sub(r"[^\w.\-]", "_", name)).as_uri() if root else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise LineageError(
            f"the MLflow experiment {name!r} was deleted; restore it (mlflow experiments restore) first"
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def start_stage_run(
    *,
    experiment: str,
    stage: Stage,
    run_name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    source_folder: str | os.PathLike[str] = ".",
    log_system_metrics: bool | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """The run of one stage, active for `mlflow.*` calls inside; FAILED when the block raises.

    Call `connect` first. `params` may be nested: keys are joined with dots. `tags` get the prefix `isthmus.`
    where they have no dot. The git state of `source_folder` is recorded. Under `mlflow run` (MLproject) the
    run becomes a child of the project's run, and inside another run a child of that one. `log_system_metrics`
    is MLflow's: None leaves it to MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.
    """
    import mlflow

    client = mlflow.MlflowClient()
    state = git_state(source_folder)
    run_tags = prefixed(
        {"stage": stage, "git_commit": state["commit"], "git_dirty": state["dirty"]} | dict(tags or {})
    )
    if state["commit"]:
        run_tags["mlflow.source.git.commit"] = state["commit"]
    parent = _project_run(client)
    if parent:
        run_tags["mlflow.parentRunId"] = parent
    run = mlflow.start_run(
        experiment_id=experiment_id(client, experiment),
        run_name=run_name,
        tags=run_tags,
        nested=True,
        log_system_metrics=log_system_metrics,
    )
    with run:
        if params:
            log_params(run.info.run_id, params)
        yield run


def _project_run(client: mlflow.MlflowClient) -> str | None:
    """The run of `mlflow run`, which it exports for start_run to write into; ours is a child of it."""
    from mlflow.exceptions import MlflowException

    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return None
    try:
        client.get_run(run_id)
    except MlflowException:
        log.debug("MLFLOW_RUN_ID=%s is not in this store; not used as parent", run_id)
        return None
    return run_id


def prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow wants them: our prefix where the key has no dot, text or JSON, nothing for None."""
    clean = {}
    for key, value in tags.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        clean[key if "." in key else TAG + key] = text[:_MAX_TAG_CHARS]
    return clean


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 3}} becomes {"train.epochs": 3}; lists stay one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{name}."))
        else:
            flat[name] = value
    return flat


def mlflow_name(text: str) -> str:
    """`text` with what MLflow does not allow in names of parameters and metrics replaced by `_`."""
    return _NOT_IN_NAMES.sub("_", text)


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Record parameters of a run, nested keys joined with dots, values cut at MLflow's 6,000 characters."""
    import mlflow
    from mlflow.entities import Param

    rows = [Param(mlflow_name(key), str(value)[:_MAX_PARAM_CHARS]) for key, value in flatten(params).items()]
    client = mlflow.MlflowClient()
    for start in range(0, len(rows), _MAX_PARAMS_PER_CALL):
        client.log_batch(run_id, params=rows[start : start + _MAX_PARAMS_PER_CALL])


def log_metrics(
    run_id: str,
    metrics: Mapping[str, float],
    *,
    step: int = 0,
    model_id: str | None = None,
    dataset: DatasetRef | None = None,
    timestamp_ms: int | None = None,
) -> None:
    """Record metrics of a run at one step (an epoch), linked to a LoggedModel and a data set when given.

    `timestamp_ms` (since 1970) is when they were measured; default: now.
    """
    import mlflow
    from mlflow.entities import Metric

    now_ms = timestamp_ms if timestamp_ms is not None else int(time.time() * 1000)
    rows = [
        Metric(
            mlflow_name(key),
            float(value),
            now_ms,
            step,
            model_id=model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None,
            run_id=run_id if model_id or dataset else None,
        )
        for key, value in metrics.items()
    ]
    client = mlflow.MlflowClient()
    for start in range(0, len(rows), _MAX_METRICS_PER_CALL):
        client.log_batch(run_id, metrics=rows[start : start + _MAX_METRICS_PER_CALL])


def log_tags(run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags of a run (prefix as in `start_stage_run`)."""
    import mlflow
    from mlflow.entities import RunTag

    mlflow.MlflowClient().log_batch(
        run_id, tags=[RunTag(key, value) for key, value in prefixed(tags).items()]
    )


def log_dataset(
    run_id: str,
    *,
    name: str,
    digest: str,
    source: str,
    context: Literal["training", "validation", "testing", "reference", "evaluation"] = "training",
    profile: Mapping[str, Any] | None = None,
) -> DatasetRef:
    """Record a data set as an input of a run.

    `digest` is the 64-character digest of dataset.json; MLflow keeps 36 characters of it in its own field,
    the whole goes into the profile and into the run's tag `isthmus.dataset_digest`. `source` is where the
    images come from (`dataset.json`'s source, or the folder); `profile` is free (split sizes).
    """
    import mlflow
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entry = Dataset(
        name=name,
        digest=digest[:_MLFLOW_DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(dict(profile or {}) | {"digest": digest}, sort_keys=True),
    )
    mlflow.MlflowClient().log_inputs(
        run_id, datasets=[DatasetInput(entry, [InputTag("mlflow.data.context", context)])]
    )
    log_tags(run_id, {"dataset_digest": digest, "dataset_name": name})
    return DatasetRef(name=name, digest=digest[:_MLFLOW_DIGEST_CHARS], full=digest)


def link_models(run_id: str, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
    """Record LoggedModels (their ids) as inputs and outputs of a run."""
    import mlflow
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    client = mlflow.MlflowClient()
    if inputs:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id) for model_id in inputs])
    if outputs:
        client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step=0) for model_id in outputs])
