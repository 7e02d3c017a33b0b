"""Batch inference: Beam's RunInference over a pushed SavedModel, from images or TFRecords to Parquet.

    isthmus pipeline predict --model models:/digits@champion --data photos/ --output answers.parquet

The output is a folder with one file a shard of the input, each complete from the moment it is there. A run that is
killed and started again does what is missing; one over other data or with another model is refused.

<output>/part-00000-of-00012.parquet   path, class_id, label, probabilities, error, model_version, manifest_digest
<output>/_predictions.json             what they are answers to: the model, the data, how many shards
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.bundle import MANIFEST_COPIES
from isthmus.lineage.files import OUTSIDE_DIGEST, canonical_json, sha256_text, tree_digest, write_json
from isthmus.lineage.models import read_manifest
from isthmus.tfx_pipeline import prediction_inputs, remote
from isthmus.tfx_pipeline.beam_options import beam_args, runs_elsewhere, start_early
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.imports import torch_kept_out
from isthmus.tfx_pipeline.publishing import READY, versions
from isthmus.tfx_pipeline.registered_model import find_saved_model

if TYPE_CHECKING:
    import pyarrow as pa

    from isthmus.tfx_pipeline.prediction_model import Answers

logger = logging.getLogger(__name__)

STATE_FILE = "_predictions.json"
"""Its name begins with an underscore: readers of Parquet folders pass such files over."""

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(kw_only=True, frozen=True)
class Chosen:
    """The model that answers."""

    saved_model: str
    """Its folder on this machine."""

    name: str
    """What the manifest calls it."""

    version: int | None
    """The number that it is served under; None for a folder that has none."""

    manifest_digest: str
    """sha256 of its manifest, as the registry has it."""

    saved_model_digest: str
    """Of its content, computed now."""


@dataclass(kw_only=True)
class Predictions:
    """What a run came to."""

    output: Path
    """The folder."""

    num_images: int
    """Rows in it, of this run and of those before."""

    num_failed: int
    """Rows without an answer; their column `error` says why."""

    num_shards: int
    """Parquet files in it."""

    num_kept: int
    """Of those, finished by an earlier run."""

    seconds: float
    """Wall time of Beam's part, the model's load included."""

    model: str
    """Name and version."""


def predict(
    *,
    model: str,
    data: str,
    output: str | Path,
    home: Path,
    tracking_uri: str | None = None,
    batch_size: int = 64,
    shard_size: int = 1000,
    workers: int = 1,
    further_beam_args: tuple[str, ...] = (),
) -> Predictions:
    """Answer for every image of the data, into a folder of Parquet files.

    Args:
        model: A pushed version's folder, the serving folder above it (its newest version), the same in an object
            store, or a registered version: `models:/NAME@ALIAS`, `models:/NAME/NUMBER`.
        data: See `prediction_inputs.find`.
        output: The folder, of this machine or on a file system that the workers share with it; made when it is not
            there.
        home: Home folder, where the registry is unless `tracking_uri` says otherwise.
        tracking_uri: MLflow store of a registered version.
        batch_size: Images a call of the model.
        shard_size: Images a Parquet file: what a killed run may lose.
        workers: Processes.
        further_beam_args: More options for Beam, such as a runner. One that works elsewhere needs a model's folder that
            its workers see: nothing is sent to them but its path.

    Raises:
        PipelineError: The model, the data or the output cannot be used.
        LineageError: The registry cannot be reached or has no such version.
    """
    for option, value in (("batch-size", batch_size), ("shard-size", shard_size), ("workers", workers)):
        if value < 1:
            raise PipelineError(f"--{option} must be ≥ 1, got {value}")
    output = _local(output)
    elsewhere = runs_elsewhere(further_beam_args)
    with (
        torch_kept_out(),
        _chosen(model, home=home, tracking_uri=tracking_uri, shared=elsewhere) as chosen,
    ):
        inputs = prediction_inputs.find(data, shard_size=shard_size)
        missing = _missing(output, chosen, inputs)
        called = chosen.name if chosen.version is None else f"{chosen.name} version {chosen.version}"
        logger.info("model %s, SavedModel %s", called, chosen.saved_model_digest[:12])
        logger.info(
            "data %s: %d shards, %d done before", data, len(inputs.shards), len(inputs.shards) - len(missing)
        )
        started = time.monotonic()
        if missing:
            options = beam_args(workers=min(workers, len(missing)), further=further_beam_args)
            start_early(options)
            _run(missing, len(inputs.shards), chosen, output, batch_size=batch_size, options=options)
            check_written(output, len(inputs.shards), elsewhere=elsewhere)
        seconds = time.monotonic() - started
    return _summary(output, len(inputs.shards), len(missing), seconds=seconds, model=called)


def _local(output: str | Path) -> Path:
    if remote.is_remote(output := str(output)):
        raise PipelineError(
            f"--output {output}: predictions are written to a folder of this machine, or to one on a file system that "
            "it shares with Beam's workers; give such a path and copy the files from there"
        )
    return Path(output)


@contextmanager
def _chosen(model: str, *, home: Path, tracking_uri: str | None, shared: bool) -> Iterator[Chosen]:
    """The model on this machine, checked; a copy that had to be fetched is removed at the end.

    With `shared` such a copy is refused: workers on other machines would look for it in vain.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-model-") as scratch:
        if shared and remote.is_remote(model):
            raise _not_shared(model)
        if model.startswith("models:/"):
            folder, version = _registered(model, Path(scratch), home=home, tracking_uri=tracking_uri)
        else:
            folder, version = _folder(model, Path(scratch))
        if shared and folder.is_relative_to(scratch):
            raise _not_shared(model)
        manifest = read_manifest(folder)
        if manifest is None:
            raise PipelineError(
                f"{model} is no SavedModel of a bundle (no {MANIFEST_COPIES[1]} in it); name a pushed version, "
                "the folder above it, or models:/NAME@ALIAS"
            )
        digest = tree_digest(folder, exclude=OUTSIDE_DIGEST)
        if digest != manifest["saved_model_digest"]:
            raise PipelineError(f"{model} is damaged: its files are not those that its manifest describes")
        yield Chosen(
            saved_model=str(folder),
            name=manifest["name"],
            version=version,
            manifest_digest=sha256_text(canonical_json(manifest)),
            saved_model_digest=digest,
        )


def _not_shared(model: str) -> PipelineError:
    return PipelineError(
        f"--model {model} had to be fetched to this machine's temporary folder, which the workers of the --runner that "
        "was asked for need not see; copy the version's folder to a path that they share with this machine, and give "
        "--model that path"
    )


def _registered(
    model: str, scratch: Path, *, home: Path, tracking_uri: str | None
) -> tuple[Path, int | None]:
    from isthmus.lineage import registry, tracking

    parsed = _REGISTERED.fullmatch(model)
    if parsed is None:
        raise PipelineError(f"--model {model}: write models:/NAME@ALIAS or models:/NAME/NUMBER")
    tracking.connect(home, tracking_uri)
    version = registry.get(parsed["name"], parsed["alias"] or int(parsed["version"]))
    return find_saved_model(version, scratch), version.served_version


def _folder(model: str, scratch: Path) -> tuple[Path, int | None]:
    """A version's folder, or the newest complete one below a serving folder."""
    if remote.is_remote(model):
        if not remote.exists(remote.join(model, READY)):
            complete = versions(model)
            if not complete:
                raise PipelineError(f"no version in {model}: nothing there holds a {READY}")
            model = remote.join(model, str(max(complete)))
        target = scratch / "model"
        remote.fetch_tree(model, target)
        return target, _number(model)
    folder = Path(model)
    if not (folder / READY).is_file():
        complete = versions(model)
        if not complete:
            raise PipelineError(
                f"no model at {model}: neither it nor a numbered folder in it holds a {READY}"
            )
        folder /= str(max(complete))
    return folder.resolve(), _number(folder.resolve().name)


def _number(place: str) -> int | None:
    last = place.rstrip("/").rsplit("/", maxsplit=1)[-1]
    return int(last) if last.isdecimal() else None


def part_name(number: int, total: int) -> str:
    """The Parquet file of a shard."""
    return f"part-{number:05d}-of-{total:05d}.parquet"


def _missing(output: Path, chosen: Chosen, inputs: prediction_inputs.Inputs) -> list[prediction_inputs.Shard]:
    """The shards that no earlier run has finished; refuses a folder that holds answers to something else."""
    asked = {
        "saved_model_digest": chosen.saved_model_digest,
        "manifest_digest": chosen.manifest_digest,
        "model_version": chosen.version,
        "data": inputs.fingerprint,
        "num_shards": len(inputs.shards),
    }
    state = output / STATE_FILE
    if output.exists() and not output.is_dir():
        raise PipelineError(
            f"--output {output} is a file; name a folder (it may be called {output.name} elsewhere)"
        )
    if state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        if changed := sorted(key for key, value in asked.items() if before.get(key) != value):
            raise PipelineError(
                f"{output} holds predictions of another run (another {', '.join(changed)}); "
                "give another --output, or remove it"
            )
    elif output.is_dir() and any(output.iterdir()):
        raise PipelineError(f"{output} holds files that are no predictions; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(state, asked)
    for leftover in output.glob(".part-*"):
        leftover.unlink()
    total = len(inputs.shards)
    return [shard for shard in inputs.shards if not (output / part_name(shard.number, total)).is_file()]


def _run(
    shards: list[prediction_inputs.Shard],
    total: int,
    chosen: Chosen,
    output: Path,
    *,
    batch_size: int,
    options: list[str],
) -> None:
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.options.pipeline_options import PipelineOptions

    from isthmus.tfx_pipeline.prediction_model import SavedModelHandler

    handler = SavedModelHandler(chosen.saved_model, batch_size=batch_size)
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(shards, reshuffle=True)
            | "RunInference" >> RunInference(handler)
            | "Write" >> beam.Map(_write, str(output.absolute()), total, asdict(chosen))
        )


def _write(result: Any, output: str, total: int, chosen: dict[str, Any]) -> None:
    """One shard's Parquet file, beside and then renamed: there, it is whole."""
    import pyarrow.parquet as pq

    target = Path(output, part_name(result.example.number, total))
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    pq.write_table(table_of(result.inference, chosen), beside, compression="zstd")
    os.replace(beside, target)
    logger.info("%s written", target.name)


def table_of(answers: Answers, chosen: dict[str, Any]) -> pa.Table:
    """The rows of a shard.

    Args:
        answers: The model's.
        chosen: `Chosen` as a dict: `version` and `manifest_digest` become columns.

    Returns:
        Columns path (string), class_id (int64), label (string), probabilities (list of float32, in the order of
        the model's labels), error (string), model_version (int64), manifest_digest (string).
    """
    import pyarrow as pa

    num_rows = len(answers.paths)
    return pa.table(
        {
            "path": pa.array(answers.paths, pa.string()),
            "class_id": pa.array(answers.class_ids, pa.int64()),
            "label": pa.array(answers.labels, pa.string()),
            "probabilities": pa.array(answers.probabilities, pa.list_(pa.float32())),
            "error": pa.array(answers.errors, pa.string()),
            "model_version": pa.array([chosen["version"]] * num_rows, pa.int64()),
            "manifest_digest": pa.array([chosen["manifest_digest"]] * num_rows, pa.string()),
        }
    )


def check_written(output: Path, total: int, *, elsewhere: bool) -> None:
    """Look for every file of a run that ended well.

    Args:
        output: The folder.
        total: How many files there must be.
        elsewhere: Whether workers on other machines wrote them.

    Raises:
        PipelineError: Some are not there.
    """
    lost = [
        name
        for name in (part_name(number, total) for number in range(total))
        if not (output / name).is_file()
    ]
    if lost:
        why = "the engine's workers wrote them to disks of their own; " if elsewhere else ""
        raise PipelineError(
            f"{len(lost)} of {total} files are not in {output} after the run, for instance {lost[0]}: {why}"
            "give an --output that all workers share with this machine, or run without --beam-arg=--runner=…"
        )


def _summary(output: Path, total: int, num_new: int, *, seconds: float, model: str) -> Predictions:
    import pyarrow.dataset as ds

    rows = ds.dataset([str(output / part_name(number, total)) for number in range(total)], format="parquet")
    num_images = rows.count_rows()
    num_failed = rows.count_rows(filter=ds.field("error").is_valid())
    if num_failed:
        (first,) = rows.head(1, columns=["path", "error"], filter=ds.field("error").is_valid()).to_pylist()
        logger.info(
            "%d images have no answer, for instance %s: %s", num_failed, first["path"], first["error"]
        )
    done = f"{num_images} rows in {output} ({total - num_new} of {total} shards were there already)"
    logger.info("%s", done if num_new else f"up to date: {done}")
    return Predictions(
        output=output,
        num_images=num_images,
        num_failed=num_failed,
        num_shards=total,
        num_kept=total - num_new,
        seconds=seconds,
        model=model,
    )
