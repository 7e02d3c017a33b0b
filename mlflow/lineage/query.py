"""`isthmus lineage SUBJECT`: from anything somebody may hold in the hand to its chain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isthmus.lineage import history, registry, tracking
from isthmus.lineage.chain import Chain, Node, Record, brief, build
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import OUTSIDE_DIGEST, read_json, sha256_file, tree_digest
from isthmus.lineage.models import manifest_at, read_manifest
from isthmus.lineage.versions import Version, store_client

_REGISTRY_URI = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:/(?P<number>\d+)|@(?P<alias>[\w\-.]+))")
_HEX = re.compile(r"[0-9a-f]{7,64}")
_DIGEST_TAGS = ("dataset_digest", "weights_sha256", "onnx_sha256", "saved_model_digest", "manifest_sha256")
_MAX_FULL_CHAINS = 10
"""An answer with more versions than this has a line for each; ask about one of them for its chain."""
_MAX_RUNS = 50
_COMMIT_TAGS = ("git_commit", "export_commit")
_ID_TAGS = (
    "train_run_id",
    "export_run_id",
    "pipeline_run_id",
    "torch_model_id",
    "onnx_model_id",
    "saved_model_id",
)
_FORMS = (
    "models:/NAME@ALIAS, models:/NAME/NUMBER, the name of a registered model, a folder (pushed version, "
    "bundle, checkpoint, data set), a .safetensors or .onnx file, a git commit, an MLflow run or model id, "
    "or a digest"
)


def lineage(
    subject: str, *, home: Path, tracking_uri: str | None = None, at: datetime | str | None = None
) -> Chain:
    """The chain of `subject`.

    `at` asks for what an alias pointed at in that moment (`models:/digits@champion` only; a time without a
    zone is in UTC). Raises LineageError when nothing is known about the subject, with the forms a subject may
    have.
    """
    moment = parse_time(at) if isinstance(at, str) else at
    tracking.connect(home, tracking_uri)
    match = _REGISTRY_URI.fullmatch(subject)
    if match and not Path(subject).exists():
        return _of_version(subject, _registered(match["name"], match["number"], match["alias"], moment))
    if moment is not None:
        raise LineageError(f"--at goes with an alias (models:/NAME@champion), not with {subject!r}")
    if Path(subject).exists():
        return _of_path(subject, Path(subject))
    if subject in registry.list_models():
        champion = registry.champion(subject)
        return _of_version(subject, champion or registry.get(subject, "challenger"))
    if _HEX.fullmatch(subject) or subject.startswith("m-"):
        return _of_identity(subject)
    raise LineageError(f"{subject!r} is nothing that lineage knows; give {_FORMS}")


def parse_time(text: str) -> datetime:
    """`2026-11-01`, `2026-11-01T12:00`, with a zone or in UTC. Raises LineageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise LineageError(
            f"{text!r} is no time; write 2026-11-01T12:00 (UTC) or 2026-11-01T12:00+01:00"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _registered(name: str, number: str | None, alias: str | None, at: datetime | None) -> Version:
    if at is None:
        if alias == "champion" and (champion := registry.champion(name)):
            return champion
        return registry.get(name, number or str(alias))
    if alias != "champion":
        raise LineageError(f"--at asks what was champion then: give models:/{name}@champion")
    move = history.champion_at(registry.history(name), at)
    if move is None:
        raise LineageError(f"{name} had no champion at {at.isoformat()}")
    return registry.get(name, move.to_version)


def record_of(version: Version) -> Record:
    """All that can be found about a registered version: manifest (bundle, or the pushed copy), checkpoint."""
    bundle = version.bundle
    manifest = manifest_at(version.bundle_place) if version.bundle_place else None
    if manifest is None and version.pushed_place is not None:
        manifest = manifest_at(version.pushed_place)
    checkpoint = _existing(version.tag("checkpoint"))
    return Record(
        version=version,
        manifest=manifest,
        bundle=bundle,
        pushed_path=version.pushed_path,
        checkpoint_path=checkpoint,
        checkpoint=_read_checkpoint(checkpoint),
    )


def _existing(text: str | None) -> Path | None:
    return Path(text) if text and Path(text).exists() else None


def _read_checkpoint(folder: Path | None) -> dict[str, Any] | None:
    if folder is None or not (folder / "checkpoint.json").is_file():
        return None
    return dict(read_json(folder / "checkpoint.json"))


def _of_version(subject: str, version: Version) -> Chain:
    record = record_of(version)
    return Chain(subject=subject, root=build(record), records=[record])


def _of_path(subject: str, path: Path) -> Chain:
    path = path.resolve()
    if path.is_file():
        return _of_file(subject, path)
    if (path / "saved_model.pb").is_file():
        return _of_saved_model(subject, path)
    if (path / "manifest.json").is_file():
        manifest = read_manifest(path)
        if manifest is None:
            raise LineageError(f"{path}/manifest.json is no bundle's manifest; give {_FORMS}")
        return _of_bundle(subject, path, manifest)
    if (path / "checkpoint.json").is_file():
        return _of_checkpoint(subject, path)
    if (path / "dataset.json").is_file():
        return _of_identity(str(read_json(path / "dataset.json")["digest"]))
    served = sorted((int(child.name), child) for child in path.iterdir() if child.name.isdigit())
    if served:
        return _of_path(subject, served[-1][1])
    raise LineageError(f"{path} is no bundle, checkpoint, pushed version or data folder; give {_FORMS}")


def _of_file(subject: str, path: Path) -> Chain:
    if path.suffix == ".safetensors" and (path.parent / "checkpoint.json").is_file():
        return _of_checkpoint(subject, path.parent)
    return _of_identity(sha256_file(path), subject=subject)


def _of_saved_model(subject: str, path: Path) -> Chain:
    manifest = read_manifest(path)
    digest = manifest["saved_model_digest"] if manifest else tree_digest(path, exclude=OUTSIDE_DIGEST)
    found = registry.find(saved_model_digest=digest)
    here = [
        version for version in found if version.pushed_path and version.pushed_path.resolve() == path
    ] or found
    if here:
        return _of_version(subject, here[0])
    if manifest is None:
        raise LineageError(f"{path} holds no manifest and was never registered (SavedModel digest {digest})")
    record = Record(
        manifest=manifest, pushed_path=path, checkpoint_path=_existing(manifest["training"].get("checkpoint"))
    )
    return Chain(subject=subject, root=build(record), records=[record])


def lineage_of_manifest(
    manifest: Mapping[str, Any], *, subject: str, home: Path, tracking_uri: str | None = None
) -> Chain:
    """The chain of whatever answered with this manifest: a running server's signature `manifest`, a download.

    `subject` says where it came from (`10.0.0.1:8500 digits`). The registered version is found by the digest
    of the SavedModel; without one the chain is what the manifest tells.
    """
    tracking.connect(home, tracking_uri)
    if "saved_model_digest" not in manifest:
        raise LineageError(
            f"{subject} answered with no manifest of isthmus; was its model exported by isthmus?"
        )
    found = registry.find(saved_model_digest=str(manifest["saved_model_digest"]))
    if found:
        return _of_version(subject, found[0])
    record = Record(manifest=manifest)
    return Chain(subject=subject, root=build(record), records=[record])


def _of_bundle(subject: str, path: Path, manifest: dict[str, Any]) -> Chain:
    found = registry.find(saved_model_digest=manifest["saved_model_digest"])
    if found:
        return _of_version(subject, found[0])
    checkpoint = _existing(manifest["training"].get("checkpoint"))
    record = Record(
        manifest=manifest, bundle=path, checkpoint_path=checkpoint, checkpoint=_read_checkpoint(checkpoint)
    )
    return Chain(subject=subject, root=build(record), records=[record])


def _of_checkpoint(subject: str, path: Path) -> Chain:
    checkpoint = _read_checkpoint(path)
    assert checkpoint is not None
    found = registry.find(weights_sha256=checkpoint["weights_sha256"])
    if found:
        label = f"checkpoint {path}"
        return _several(subject, Node(kind="checkpoint", label=label, id=checkpoint["weights_sha256"]), found)
    record = Record(checkpoint=checkpoint, checkpoint_path=path)
    return Chain(subject=subject, root=build(record), records=[record])


def _of_identity(identity: str, *, subject: str | None = None) -> Chain:
    """Whatever carries this digest, commit, run id or model id; a beginning of 7 characters is enough."""
    full = {64: _DIGEST_TAGS, 40: _COMMIT_TAGS, 32: _ID_TAGS}.get(len(identity))
    if identity.startswith("m-"):
        full = _ID_TAGS
    keys = full or (*_DIGEST_TAGS, *_COMMIT_TAGS, *_ID_TAGS)
    found = _carriers(identity, keys, exact=full is not None)
    matched = sorted(
        {key for version in found for key in keys if (version.tag(key) or "").startswith(identity)}
    )
    runs = _runs_with(identity, found)
    if not found and not runs:
        raise LineageError(
            f"nothing registered carries {subject or identity}"
            + (f" (sha256 {identity})" if subject else "")
            + "; `isthmus registry list` shows what is registered"
        )
    kind = "commit" if set(matched) & set(_COMMIT_TAGS) else "digest"
    root = Node(kind=kind, label=_names(matched, runs), id=identity)
    root.children = runs
    return _several(subject or identity, root, found)


def _names(matched: Sequence[str], runs: Sequence[Node]) -> str:
    words = {
        "dataset_digest": "data",
        "weights_sha256": "weights",
        "onnx_sha256": "ONNX",
        "saved_model_digest": "SavedModel",
        "manifest_sha256": "manifest",
        "git_commit": "commit",
        "export_commit": "commit",
    }
    named = dict.fromkeys(words.get(key, key.removesuffix("_id").replace("_", " ")) for key in matched)
    return " and ".join(named) or ("data or commit" if runs else "id")


def _carriers(identity: str, keys: Sequence[str], *, exact: bool) -> list[Version]:
    if exact:
        return _unique(version for key in keys for version in registry.find(**{key: identity}))
    everything = registry.list_versions()
    return _unique(
        version
        for version in everything
        if any((version.tag(key) or "").startswith(identity) for key in keys)
    )


def _unique(versions: Any) -> list[Version]:
    by_place = {(version.name, version.version): version for version in versions}
    return [by_place[place] for place in sorted(by_place)]


def _runs_with(identity: str, found: Sequence[Version]) -> list[Node]:
    """The newest training runs on this data or from this commit that led to no registered version."""
    client = store_client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    registered = {version.tag("train_run_id") for version in found}
    runs: dict[str, Any] = {}
    for key in ("dataset_digest", "git_commit"):
        query = f"tags.`isthmus.{key}` LIKE '{identity}%' and tags.`isthmus.stage` = 'train'"
        page = client.search_runs(experiments, query, max_results=_MAX_RUNS + len(registered))
        runs |= {run.info.run_id: run for run in page if run.info.run_id not in registered}
    return [
        Node(
            kind="training",
            label=f"training run {run.info.run_name or ''}".strip(),
            id=run_id,
            facts={"name": run.data.tags.get("isthmus.name"), "status": run.info.status, "registered": "no"},
        )
        for run_id, run in list(runs.items())[:_MAX_RUNS]
    ]


def _several(subject: str, root: Node, versions: Sequence[Version]) -> Chain:
    records = [record_of(version) for version in versions]
    if len(records) <= _MAX_FULL_CHAINS:
        nodes = [build(record) for record in records]
    else:
        names = {version.name for version in versions}
        moves = {name: history.champion_moves(registry.history(name)) for name in names}
        nodes = [brief(version, moves[version.name]) for version in versions]
    root.children = nodes + root.children
    return Chain(subject=subject, root=root, records=records)
