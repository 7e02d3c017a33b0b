"""A pushed model becomes a registered version: once, with a tag for every hash and every link back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage import gates, history, tracking
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import canonical_json, sha256_file, sha256_text
from isthmus.lineage.places import is_remote
from isthmus.lineage.versions import METRIC_TAG, Version, find, get, settle_aliases, store_client, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def register_version(
    *,
    name: str,
    manifest: Mapping[str, Any],
    bundle: Path | str,
    manifest_sha256: str | None = None,
    pushed_path: Path | str | None = None,
    served_version: int | None = None,
    run_id: str | None = None,
    metrics: Mapping[str, float] | None = None,
    mlmd: Mapping[str, Any] | None = None,
    description: str = "",
    by: str | None = None,
) -> Version:
    """Register what a bundle's manifest describes, once per `saved_model_digest`; alias `challenger` moves to
    it.

    Where the name has no champion, the version becomes `champion` too if every gate of a promotion lets it, and
    the history says so; if not, one log line says why. A second call for the same SavedModel returns the version
    of the first, with the tags of this push.

    `bundle` is the published folder (its manifest.json is hashed) or its URI (then its `manifest_sha256` is given),
    `pushed_path` the served folder or its URI,
    `served_version` its number, `run_id` the pipeline's MLflow run, `mlmd` ids of ML Metadata by name.
    """
    client = store_client()
    _ensure_model(client, name, manifest)
    tags = version_tags(manifest, bundle, manifest_sha256=manifest_sha256) | tracking.prefixed(
        {
            "pushed_path": _place(pushed_path) if pushed_path else None,
            "served_version": served_version,
            "pipeline_run_id": run_id,
        }
    )
    tags |= {f"isthmus.mlmd.{key}": str(value) for key, value in (mlmd or {}).items()}
    tags |= {
        METRIC_TAG + tracking.mlflow_name(key): repr(float(value)) for key, value in (metrics or {}).items()
    }
    existing = find(name, saved_model_digest=manifest["saved_model_digest"])
    if existing:
        number = existing[0].version
        log.info("%s version %d is this SavedModel already; its tags now name this push", name, number)
        for key, value in tags.items():
            client.set_model_version_tag(name, str(number), key, value)
    else:
        number = _create(client, name, manifest, tags, run_id=run_id, description=description)
    _announce(client, name, number, by=user_name(by))
    return get(name, number)


def _place(path: Path | str) -> str:
    """An absolute path; a URI is one already."""
    return str(path) if is_remote(str(path)) else str(Path(path).absolute())


def version_tags(
    manifest: Mapping[str, Any], bundle: Path | str, *, manifest_sha256: str | None = None
) -> dict[str, str]:
    """The tags that a manifest gives its version: every hash, every id, what decides a promotion."""
    training, export, dataset = manifest["training"], manifest["export"], manifest["dataset"]
    at_training, at_export = training.get("source") or {}, manifest.get("source") or {}
    training_ids, export_ids = training.get("mlflow") or {}, export.get("mlflow") or {}
    return tracking.prefixed(
        {
            "bundle": _place(bundle),
            "saved_model_digest": manifest["saved_model_digest"],
            "manifest_sha256": manifest_sha256 or sha256_file(Path(bundle) / "manifest.json"),
            "manifest_copy_sha256": sha256_text(canonical_json(manifest)),
            "onnx_sha256": export.get("onnx_sha256"),
            "weights_sha256": training.get("checkpoint_sha256"),
            "checkpoint": training.get("checkpoint"),
            "dataset_name": dataset.get("name"),
            "dataset_digest": dataset.get("digest"),
            "git_commit": at_training.get("commit"),
            "git_dirty": at_training.get("dirty"),
            "export_commit": at_export.get("commit"),
            "export_dirty": at_export.get("dirty"),
            "train_run_id": training_ids.get("run_id"),
            "torch_model_id": training_ids.get("model_id"),
            "export_run_id": export_ids.get("run_id"),
            "onnx_model_id": export_ids.get("onnx_model_id"),
            "saved_model_id": export_ids.get("saved_model_id"),
            "model_name": manifest["model"].get("name"),
            "rung": export.get("rung"),
            "precision": export.get("precision"),
            "parity_passed": bool(manifest["parity"].get("passed")),
            "overrides": list(manifest.get("overrides") or []),
        }
    )


def _ensure_model(client: MlflowClient, name: str, manifest: Mapping[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    if history.is_log(name) or any(sign in name for sign in "/:'`"):
        raise LineageError(
            f"{name!r} cannot name a model: no / : ' ` in it, and not ending in {history.SUFFIX}"
        )
    try:
        client.create_registered_model(
            name, tags={"isthmus.kind": "model", "isthmus.model": manifest["model"]["name"]}
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create(
    client: MlflowClient,
    name: str,
    manifest: Mapping[str, Any],
    tags: dict[str, str],
    *,
    run_id: str | None,
    description: str,
) -> int:
    model_id = tags.get("isthmus.saved_model_id")
    bundle = tags["isthmus.bundle"]
    unknown = f"{bundle}/saved_model" if is_remote(bundle) else Path(bundle, "saved_model").as_uri()
    source = f"models:/{model_id}" if model_id else unknown
    row = client.create_model_version(
        name,
        source=source,
        run_id=run_id,
        tags=tags,
        description=description,
        model_id=model_id,
        await_creation_for=0,
    )
    # Two pipelines that registered the same SavedModel at once: the lower number stays.
    same = find(name, saved_model_digest=manifest["saved_model_digest"])
    if same[0].version < int(row.version):
        client.delete_model_version(name, str(row.version))
    return same[0].version


def _announce(client: MlflowClient, name: str, number: int, *, by: str) -> None:
    """Write a new version into the history and set the aliases; finishes what an interrupted call left."""
    entries = history.read(client, name)
    if not any(entry.action == "register" and entry.to_version == number for entry in entries):
        history.append(
            client, name, action="register", to_version=number, log=entries, by=by, why="registered"
        )
        entries = history.read(client, name)
    if not history.champion_moves(entries):
        _make_first_champion(client, name, number, log_read=entries, by=by)
    settle_aliases(client, name)


def _make_first_champion(
    client: MlflowClient, name: str, number: int, *, log_read: list[history.Entry], by: str
) -> None:
    """The gates are those of `promotion.promote`, which is how a version that fails one can follow later."""
    candidate = get(name, number)
    verdicts = gates.check(
        candidate,
        config=gates.recipe_config(candidate),
        verification_key=gates.signing_key(candidate),
    )
    if reasons := gates.failures(verdicts):
        log.info(
            "%s version %d stays challenger, %s has no champion yet. %s. "
            "`isthmus registry promote %s %d` checks again and makes it champion",
            name,
            number,
            name,
            ". ".join(reasons),
            name,
            number,
        )
        return
    first = history.append(
        client,
        name,
        action="first",
        to_version=number,
        log=log_read,
        by=by,
        why="there was no champion",
        verdicts={verdict.gate: verdict.text for verdict in verdicts},
    )
    if first.effective:
        log.info("%s had no champion: version %d is it now", name, number)
