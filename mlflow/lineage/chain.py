"""The chain of one model: from the version that serves, link by link, back to its commit and its data.

A `Record` is what could be found: the registered version, the manifest, the checkpoint, the folders. `build`
turns it into a tree of nodes; `verify` recomputes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isthmus.lineage import history
from isthmus.lineage.versions import Version, store_client

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Node:
    """One thing in the chain, and below it what it was made from."""

    kind: str
    """version, served, evaluation, saved_model, parity, export, onnx, weights, training, code, data, or, at
    the root of an answer about something else: checkpoint, commit, digest."""

    label: str
    """What it is, in a few words."""

    id: str | None = None
    """Its identity: a digest, a run id, a commit, `name/3`."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What is known about it; None where it is not known."""

    children: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "kind": self.kind,
            "label": self.label,
            "id": self.id,
            "facts": self.facts,
            "children": [child.to_dict() for child in self.children],
        }

    def find(self, kind: str) -> list[Node]:
        """Every node of a kind in this tree, top down."""
        below = [node for child in self.children for node in child.find(kind)]
        return [self, *below] if self.kind == kind else below


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was found about one model."""

    version: Version | None = None
    manifest: Mapping[str, Any] | None = None
    """Of the bundle, or the copy in a pushed folder."""
    checkpoint: Mapping[str, Any] | None = None
    """checkpoint.json."""
    checkpoint_path: Path | None = None
    bundle: Path | None = None
    pushed_path: Path | None = None

    def tag(self, key: str) -> str | None:
        """A tag of the version without its prefix; None without a version."""
        return self.version.tag(key) if self.version else None


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The answer to `isthmus lineage SUBJECT`."""

    subject: str
    root: Node
    records: list[Record]
    """One for each model that the answer speaks of."""

    @property
    def commits(self) -> list[str]:
        """The git commits the models were trained from."""
        nodes = [node.id for node in self.root.find("code")]
        return _distinct([*nodes, *(record.tag("git_commit") for record in self.records)])

    @property
    def data_digests(self) -> list[str]:
        """The digests of the data the models were trained on."""
        nodes = [node.id for node in self.root.find("data")]
        return _distinct([*nodes, *(record.tag("dataset_digest") for record in self.records)])

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "schema_version": 1,
            "subject": self.subject,
            "commits": self.commits,
            "data_digests": self.data_digests,
            "chain": self.root.to_dict(),
        }


def _distinct(values: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def build(record: Record) -> Node:
    """The tree of one model, from whatever of it was found; version, bundle or checkpoint at the root."""
    if record.version is not None:
        return _version_node(record)
    if record.manifest is not None:
        return _saved_model_node(record)
    return _weights_node(record)


def brief(version: Version, moves: Sequence[history.Entry]) -> Node:
    """One line about a version, for an answer that has many; `moves` are its model's champion moves."""
    return Node(
        kind="version",
        label=f"{version.name} version {version.version}",
        id=f"{version.name}/{version.version}",
        facts={
            "aliases": list(version.aliases),
            "registered": version.created,
            **_championship(version, moves),
        },
    )


def _version_node(record: Record) -> Node:
    version = record.version
    assert version is not None
    node = brief(version, history.champion_moves(history.read(store_client(), version.name)))
    node.children = [_served_node(record), _evaluation_node(record), _saved_model_node(record)]
    return node


def _championship(version: Version, moves: Sequence[history.Entry]) -> dict[str, Any]:
    """Since when, by whom and why it is champion, or how long it was."""
    terms = []
    for index, move in enumerate(moves):
        if move.to_version == version.version:
            until = moves[index + 1].when if index + 1 < len(moves) else None
            terms.append({"since": move.when, "until": until, "by": move.by, "why": move.why})
    return {"champion": terms} if terms else {}


def _served_node(record: Record) -> Node:
    path = record.pushed_path or (record.version.pushed_path if record.version else None)
    facts = {"version": record.version.served_version if record.version else None}
    if path is None:
        place = record.version.pushed_place if record.version else None
        if place is None:
            return Node(kind="served", label="never pushed")
        return Node(kind="served", label="served from", id=place, facts=facts)
    return Node(kind="served", label="served from", id=str(path), facts=facts | {"present": path.is_dir()})


def _evaluation_node(record: Record) -> Node:
    version = record.version
    assert version is not None
    mlmd = {key: value for key, value in version.tags.items() if key.startswith("isthmus.mlmd.")}
    overall = {key: value for key, value in version.metrics.items() if "/" not in key}
    facts = overall | {key.removeprefix("isthmus."): value for key, value in mlmd.items()}
    return Node(
        kind="evaluation", label="pipeline run", id=version.run_id, facts=facts | _run_facts(version.run_id)
    )


def _saved_model_node(record: Record) -> Node:
    manifest = record.manifest or {}
    export = manifest.get("export") or {}
    node = Node(
        kind="saved_model",
        label="SavedModel",
        id=manifest.get("saved_model_digest") or record.tag("saved_model_digest"),
        facts={
            "model_id": (export.get("mlflow") or {}).get("saved_model_id") or record.tag("saved_model_id"),
            "bundle": str(record.bundle) if record.bundle else record.tag("bundle"),
        },
    )
    node.children = [_parity_node(record), _export_node(record), _onnx_node(record)]
    return node


def _parity_node(record: Record) -> Node:
    if record.manifest is None:
        passed = record.tag("parity_passed") == "true"
        return Node(kind="parity", label=f"parity {'passed' if passed else 'not passed'}")
    parity = record.manifest["parity"]
    facts = {stage["stage"]: stage.get("error") for stage in parity.get("stages") or []}
    if record.manifest.get("overrides"):
        facts["overrides"] = record.manifest["overrides"]
    return Node(
        kind="parity", label=f"parity {'passed' if parity.get('passed') else 'not passed'}", facts=facts
    )


def _export_node(record: Record) -> Node:
    manifest = record.manifest or {}
    export, source = manifest.get("export") or {}, manifest.get("source") or {}
    run_id = (export.get("mlflow") or {}).get("run_id") or record.tag("export_run_id")
    facts = {
        "rung": export.get("rung") or record.tag("rung"),
        "exporter": export.get("exporter"),
        "opset": export.get("opset"),
        "commit": source.get("commit") or record.tag("export_commit"),
        "dirty": source["dirty"] if "dirty" in source else _boolean(record.tag("export_dirty")),
    }
    return Node(kind="export", label="export run", id=run_id, facts=facts | _run_facts(run_id))


def _onnx_node(record: Record) -> Node:
    export = (record.manifest or {}).get("export") or {}
    return Node(
        kind="onnx",
        label="ONNX",
        id=export.get("onnx_sha256") or record.tag("onnx_sha256"),
        facts={"model_id": (export.get("mlflow") or {}).get("onnx_model_id") or record.tag("onnx_model_id")},
        children=[_weights_node(record)],
    )


def _weights_node(record: Record) -> Node:
    training, checkpoint = _training(record), record.checkpoint or {}
    model = (record.manifest or checkpoint).get("model") or {}
    path = record.checkpoint_path or training.get("checkpoint") or record.tag("checkpoint")
    return Node(
        kind="weights",
        label="weights",
        id=training.get("checkpoint_sha256") or record.tag("weights_sha256"),
        facts={
            "model": model.get("name") or record.tag("model_name"),
            "pretrained": model.get("pretrained_tag"),
            "model_id": (training.get("mlflow") or {}).get("model_id") or record.tag("torch_model_id"),
            "checkpoint": str(path) if path else None,
        },
        children=[_training_node(record)],
    )


def _training(record: Record) -> Mapping[str, Any]:
    """The manifest's `training` section, or the same from checkpoint.json."""
    if record.manifest is not None:
        return dict(record.manifest["training"])
    checkpoint = record.checkpoint or {}
    return {**checkpoint, "checkpoint_sha256": checkpoint.get("weights_sha256")} if checkpoint else {}


def _training_node(record: Record) -> Node:
    training = _training(record)
    run_id = (training.get("mlflow") or {}).get("run_id") or record.tag("train_run_id")
    facts = dict(training.get("metrics") or {}) | _run_facts(run_id)
    return Node(
        kind="training",
        label="training run",
        id=run_id,
        facts=facts,
        children=[_code_node(record, training), _data_node(record)],
    )


def _code_node(record: Record, training: Mapping[str, Any]) -> Node:
    source = training.get("source") or {}
    return Node(
        kind="code",
        label="code",
        id=source.get("commit") or record.tag("git_commit"),
        facts={
            "dirty": source["dirty"] if "dirty" in source else _boolean(record.tag("git_dirty")),
            "remote": source.get("remote"),
        },
    )


def _data_node(record: Record) -> Node:
    dataset = (record.manifest or record.checkpoint or {}).get("dataset") or {}
    return Node(
        kind="data",
        label="data",
        id=dataset.get("digest") or record.tag("dataset_digest"),
        facts={
            "name": dataset.get("name") or record.tag("dataset_name"),
            "source": dataset.get("source"),
            "splits": dataset.get("splits"),
        },
    )


def _boolean(text: str | None) -> bool | None:
    return None if text is None else bool(json.loads(text))


def _run_facts(run_id: str | None) -> dict[str, Any]:
    """When a run was, by whom; says so when it is not in this store."""
    from datetime import UTC, datetime

    from mlflow.exceptions import MlflowException

    if run_id is None:
        return {}
    try:
        run = store_client().get_run(run_id)
    except MlflowException as error:
        log.debug("run %s: %s", run_id, error)
        return {"note": "not in this MLflow store"}
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return {
        "started": started.isoformat(timespec="seconds"),
        "user": run.data.tags.get("mlflow.user"),
        "status": run.info.status,
    }
