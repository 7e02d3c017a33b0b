"""`isthmus lineage --verify`: every hash of a chain again. Which link holds, which is broken, which cannot be
told.

`broken` is evidence against the link: a file, a run or an entry says something else. `unknown` means that the
evidence is not here: a folder that was cleaned away, a store that cannot be reached, code that was not
committed.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from isthmus.lineage import gates, history, signing
from isthmus.lineage.chain import Chain, Record
from isthmus.lineage.files import (
    MANIFEST_COPIES,
    OUTSIDE_DIGEST,
    broken_files,
    canonical_json,
    read_json,
    sha256_file,
    sha256_text,
    tree_digest,
)
from isthmus.lineage.gates import check_pushed, saved_model_table
from isthmus.lineage.source import has_commit
from isthmus.lineage.versions import store_client

log = logging.getLogger(__name__)

Status = Literal["holds", "broken", "unknown"]


@dataclass(frozen=True, kw_only=True)
class LinkCheck:
    """What recomputing one link said."""

    link: str
    """The two ends: `version 3 → served files`."""
    status: Status
    detail: str

    def to_dict(self) -> dict[str, str]:
        """JSON value."""
        return asdict(self)


_Check = Callable[[Record], Iterator[LinkCheck]]


def verify(chain: Chain, *, key: Path | None = None) -> list[LinkCheck]:
    """Check every link of every model in the answer, from the served files to the commit and the data.

    `key` is the public key, or the certificates, that signatures are held against; default: the one that the
    environment names, or the recipe that a version was made with.
    """
    return [result for record in chain.records for result in verify_record(record, key=key)]


def verify_record(record: Record, *, key: Path | None = None) -> list[LinkCheck]:
    """Check every link of one model; a checkpoint alone has only those of its training."""

    def _signature(record: Record) -> Iterator[LinkCheck]:
        return _signatures(record, key)

    of_training: list[_Check] = [_checkpoint, _runs, _data, _code]
    of_export: list[_Check] = [_history, _served, _signature, _bundle, _tags, _stored_models]
    exported = record.version is not None or record.manifest is not None
    checks = of_export + of_training if exported else of_training
    return [result for each in checks for result in each(record)]


def worst(results: list[LinkCheck]) -> Status:
    """`broken` if any is, else `unknown` if any is, else `holds`."""
    found = {result.status for result in results}
    return "broken" if "broken" in found else "unknown" if "unknown" in found else "holds"


def _result(link: str, problems: list[str], holds: str) -> LinkCheck:
    if problems:
        return LinkCheck(link=link, status="broken", detail="; ".join(problems))
    return LinkCheck(link=link, status="holds", detail=holds)


def _unknown(link: str, detail: str) -> LinkCheck:
    return LinkCheck(link=link, status="unknown", detail=detail)


def _history(record: Record) -> Iterator[LinkCheck]:
    if record.version is not None:
        entries = history.read(store_client(), record.version.name)
        yield _result(
            "registry → history", history.faults(entries), f"{len(entries)} entries, none changed or removed"
        )


def _served(record: Record) -> Iterator[LinkCheck]:
    link = "version → served files"
    version = record.version
    if version is None:
        if record.pushed_path is not None and record.manifest is not None:
            yield _saved_model_files("manifest → served files", record.pushed_path, record.manifest)
        return
    path = version.pushed_path
    if version.pushed_place is None or (path is not None and not path.is_dir()):
        yield _unknown(link, "never pushed" if path is None else f"{path} is not there")
        return
    verdict = check_pushed(version)
    yield _result(link, [] if verdict.passed else [verdict.text], verdict.text)


def _signatures(record: Record, key: Path | None) -> Iterator[LinkCheck]:
    """Of the served files, and of the bundle's; models that nobody signed and no key asks for have no such link."""
    key = key or (
        gates.signing_key(record.version) if record.version else signing.configured().verification_key
    )
    bundle = record.bundle / "saved_model" if record.bundle else None
    places = {"signature → served files": record.pushed_path, "signature → bundle files": bundle}
    for link, folder in places.items():
        if folder is None or not folder.is_dir() or not (key or signing.is_signed(folder)):
            continue
        if key is None:
            yield _unknown(
                link, f"{folder} is signed; whose signature it is takes --verification-key to tell"
            )
            continue
        refusal = signing.refusal(folder, key)
        yield _result(link, [refusal] if refusal else [], f"signed by {key}, and not changed since")


def _saved_model_files(link: str, folder: Path, manifest: Mapping[str, Any]) -> LinkCheck:
    problems = broken_files(folder, saved_model_table(manifest), exclude=OUTSIDE_DIGEST)
    problems += _differing_copies(folder, manifest)
    return _result(link, problems, f"every file of {folder} has its recorded hash")


def _differing_copies(saved_model: Path, manifest: Mapping[str, Any]) -> list[str]:
    wanted = sha256_text(canonical_json(manifest))
    copies = [saved_model / copy for copy in MANIFEST_COPIES]
    return [f"{copy} differs" for copy in copies if not copy.is_file() or sha256_file(copy) != wanted]


def _bundle(record: Record) -> Iterator[LinkCheck]:
    link, bundle = "version → bundle" if record.version else "manifest → bundle files", record.bundle
    if bundle is None or not (bundle / "manifest.json").is_file():
        yield _unknown(link, f"the bundle {bundle or '(none known)'} is not there")
        return
    problems = []
    recorded = record.tag("manifest_sha256")
    if recorded is not None and sha256_file(bundle / "manifest.json") != recorded:
        problems.append("manifest.json was changed")
    if record.manifest is None:
        yield _result(link, [*problems, "manifest.json cannot be read"], "")
        return
    outside = ["manifest.json", *(f"saved_model/{copy}" for copy in OUTSIDE_DIGEST)]
    problems += broken_files(bundle, record.manifest["files"], exclude=outside)
    problems += _differing_copies(bundle / "saved_model", record.manifest)
    yield _result(link, problems, f"every file of {bundle} has its recorded hash")


def _tags(record: Record) -> Iterator[LinkCheck]:
    """The version's tags against the manifest: both were written by others, and must agree."""
    if record.version is None or record.manifest is None:
        return
    manifest = record.manifest
    pairs = {
        "saved_model_digest": manifest["saved_model_digest"],
        "onnx_sha256": manifest["export"].get("onnx_sha256"),
        "weights_sha256": manifest["training"].get("checkpoint_sha256"),
        "dataset_digest": manifest["dataset"].get("digest"),
        "git_commit": (manifest["training"].get("source") or {}).get("commit"),
    }
    problems = [
        f"{key} differs" for key, value in pairs.items() if value is not None and record.tag(key) != value
    ]
    yield _result("version → manifest", problems, "tags and manifest agree")


def _stored_models(record: Record) -> Iterator[LinkCheck]:
    """MLflow's own copies of the SavedModel and the ONNX file."""
    export = (record.manifest or {}).get("export") or {}
    ids = export.get("mlflow") or {}
    saved_model = (record.manifest or {}).get("saved_model_digest") or record.tag("saved_model_digest")
    onnx = export.get("onnx_sha256") or record.tag("onnx_sha256")
    saved_model_id = ids.get("saved_model_id") or record.tag("saved_model_id")
    onnx_id = ids.get("onnx_model_id") or record.tag("onnx_model_id")
    yield _stored("SavedModel → MLflow model", saved_model_id, _folder_digest, saved_model)
    yield _stored("ONNX → MLflow model", onnx_id, _onnx_digest, onnx)


def _folder_digest(folder: Path) -> str | None:
    inside = folder / "saved_model"
    return tree_digest(inside, exclude=OUTSIDE_DIGEST) if inside.is_dir() else None


def _onnx_digest(folder: Path) -> str | None:
    found = sorted(folder.glob("*.onnx"))
    return sha256_file(found[0]) if found else None


def _stored(
    link: str, model_id: str | None, digest_of: Callable[[Path], str | None], wanted: str | None
) -> LinkCheck:
    from mlflow.exceptions import MlflowException

    if model_id is None or wanted is None:
        return _unknown(link, "no MLflow model is recorded")
    try:
        location = str(store_client().get_logged_model(model_id).artifact_location)
    except MlflowException:
        return _unknown(link, f"{model_id} is not in this MLflow store")
    with _files_of(model_id, location) as folder:
        if folder is None:
            return _unknown(link, f"the files of {model_id} cannot be had from {location}")
        found = digest_of(folder)
    problems = (
        [] if found == wanted else [f"the files of {model_id} have digest {found}, recorded is {wanted}"]
    )
    return _result(link, problems, f"{model_id} holds the same bytes")


@contextlib.contextmanager
def _files_of(model_id: str, location: str) -> Iterator[Path | None]:
    """The folder of a LoggedModel's files, fetched from the artifact store when that is elsewhere."""
    from mlflow.artifacts import download_artifacts

    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        folder = Path(unquote(parsed.path))
        yield folder if folder.is_dir() else None
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-verify-") as scratch:
        try:
            fetched = download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=scratch)
        except Exception as error:  # noqa: BLE001 - whatever the artifact store raises: it could not be checked
            log.debug("fetching %s: %s", model_id, error)
            fetched = None
        yield Path(fetched) if fetched else None


def _checkpoint(record: Record) -> Iterator[LinkCheck]:
    link = "weights → checkpoint"
    training = (record.manifest or {}).get("training") or record.checkpoint or {}
    wanted = (
        training.get("checkpoint_sha256") or training.get("weights_sha256") or record.tag("weights_sha256")
    )
    weights = record.checkpoint_path / "model.safetensors" if record.checkpoint_path else None
    if weights is None or not weights.is_file():
        yield _unknown(link, "the checkpoint is not there")
        return
    problems = [] if sha256_file(weights) == wanted else [f"{weights} was changed"]
    if record.checkpoint is not None and record.checkpoint.get("weights_sha256") != wanted:
        problems.append(f"{record.checkpoint_path}/checkpoint.json names other weights")
    yield _result(link, problems, f"{weights} has its recorded hash")


def _runs(record: Record) -> Iterator[LinkCheck]:
    """The MLflow runs must say what the files say: same weights, same data, same models in and out."""
    manifest = record.manifest
    training = manifest["training"] if manifest else (record.checkpoint or {})
    ids = training.get("mlflow") or {}
    wanted = {
        "weights_sha256": training.get("checkpoint_sha256") or training.get("weights_sha256"),
        "dataset_digest": ((manifest or record.checkpoint or {}).get("dataset") or {}).get("digest"),
    }
    yield _run("weights → training run", ids.get("run_id"), wanted, outputs=[ids.get("model_id")])
    if manifest is None:
        return
    exported = manifest["export"].get("mlflow") or {}
    yield _run(
        "SavedModel → export run",
        exported.get("run_id"),
        {},
        inputs=[ids.get("model_id")],
        outputs=[exported.get("onnx_model_id"), exported.get("saved_model_id")],
    )
    if record.version is not None:
        yield _run(
            "version → pipeline run",
            record.version.run_id,
            {"dataset_digest": wanted["dataset_digest"]},
            inputs=[exported.get("saved_model_id")],
        )


def _run(
    link: str,
    run_id: str | None,
    tags: Mapping[str, str | None],
    *,
    inputs: list[str | None] | None = None,
    outputs: list[str | None] | None = None,
) -> LinkCheck:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return _unknown(link, "no run is recorded")
    try:
        run = store_client().get_run(run_id)
    except MlflowException:
        return _unknown(link, f"run {run_id} is not in this MLflow store")
    problems = [
        f"{key} of the run is {run.data.tags[f'isthmus.{key}']}, recorded is {value}"
        for key, value in tags.items()
        if value is not None and run.data.tags.get(f"isthmus.{key}", value) != value
    ]
    went_in = {model.model_id for model in (run.inputs.model_inputs if run.inputs else [])}
    came_out = {model.model_id for model in (run.outputs.model_outputs if run.outputs else [])}
    problems += [
        f"model {model} is no input of the run" for model in inputs or [] if model and model not in went_in
    ]
    problems += [
        f"model {model} is no output of it" for model in outputs or [] if model and model not in came_out
    ]
    return _result(link, problems, f"run {run_id} says the same")


def _data(record: Record) -> Iterator[LinkCheck]:
    link = "weights → data"
    digest = ((record.manifest or record.checkpoint or {}).get("dataset") or {}).get("digest")
    digest = digest or record.tag("dataset_digest")
    root = ((record.checkpoint or {}).get("dataset") or {}).get("root")
    if digest is None or root is None or not Path(root).is_dir():
        yield _unknown(link, f"the data folder {root or '(none known)'} is not there")
        return
    found = data_digest(Path(root))
    problems = (
        [] if found == digest else [f"the images under {root} have digest {found}, recorded is {digest}"]
    )
    yield _result(link, problems, f"every image under {root} is the one that was used")


def data_digest(root: Path) -> str:
    """The digest of a prepared data set: over the images of its split folders, as dataset.json has it."""
    recorded = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    splits = set(recorded.get("splits") or ("train", "val", "test"))
    others = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in splits
    ]
    return tree_digest(root, exclude=others)


def _code(record: Record) -> Iterator[LinkCheck]:
    link = "training run → commit"
    source = ((record.manifest or {}).get("training") or record.checkpoint or {}).get("source") or {}
    commit = source.get("commit") or record.tag("git_commit")
    if commit is None:
        yield _unknown(link, "trained outside of a git repository")
    elif source.get("dirty"):
        yield _unknown(link, f"trained with uncommitted changes on top of {commit}")
    elif not has_commit(commit):
        yield _unknown(link, f"{commit} is not in the repository of this folder")
    else:
        yield LinkCheck(link=link, status="holds", detail=f"{commit} is in this repository")
