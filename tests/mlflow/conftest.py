"""A real MLflow store per test (SQLite, copied from one that was migrated once) and stories written by code.

A story's files have made-up content; every digest, manifest, run, LoggedModel and registered version is real.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from isthmus.export.config import GateConfig
from isthmus.lineage import models, registry, tracking
from isthmus.lineage.files import canonical_json, file_table, sha256_file, tree_digest, write_json


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables; making them takes two seconds, copying them none."""
    home = tmp_path_factory.mktemp("store")
    tracking.connect(home)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty store, connected."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return _new_home(tmp_path / "home", migrated_store)


def _new_home(folder: Path, migrated_store: Path) -> Path:
    folder.mkdir()
    shutil.copy(migrated_store, folder / "mlflow.db")
    tracking.connect(folder)
    return folder


@dataclass
class Story:
    """What one pass of train, export and pipeline left behind."""

    home: Path
    name: str
    data: Path
    data_digest: str
    checkpoint: Path
    bundle: Path
    manifest: dict[str, Any]
    pushed: Path
    train_run: str
    export_run: str
    pipeline_run: str
    version: registry.Version


@pytest.fixture
def tell(home: Path) -> Callable[..., Story]:
    """`tell("a")` trains, exports, pushes and registers a model made of the text "a"."""
    return _teller(home)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[list[Story]]:
    """The stories "a" (champion) and "b" (challenger), shared by a module's tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tell = _teller(_new_home(tmp_path_factory.mktemp("told") / "home", migrated_store))
        yield [tell("a"), tell("b")]


def _make_data(root: Path) -> Path:
    """A prepared data set: three splits of two classes, and dataset.json."""
    for split in ("train", "val", "test"):
        for label in ("0", "1"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "a.png").write_bytes(f"{split}{label}".encode())
    record = {"schema_version": 1, "name": "digits", "source": "made", "digest": tree_digest(root)}
    write_json(root / "dataset.json", record)
    return root


def _teller(home: Path) -> Callable[..., Story]:
    data = _make_data(home / "data" / "digits")

    def run(content: str, *, name: str = "digits", accuracy: float = 0.98, **changes: Any) -> Story:
        digest = json.loads((data / "dataset.json").read_text())["digest"]
        checkpoint, ids = _train(home, data, digest, name, content)
        bundle, manifest, export_run = _export(
            home, name, content, digest=digest, checkpoint=checkpoint, ids=ids, changes=changes
        )
        served = len(list((home / "serving" / name).glob("*"))) + 1
        pushed = home / "serving" / name / str(served)
        shutil.copytree(bundle / "saved_model", pushed)
        with tracking.start_stage_run(experiment=name, stage="pipeline", run_name=content) as active:
            run_id = active.info.run_id
            found = tracking.log_dataset(
                run_id, name="digits", digest=digest, source="made", context="evaluation"
            )
            model_id = manifest["export"]["mlflow"]["saved_model_id"]
            tracking.link_models(run_id, inputs=[model_id])
            tracking.log_metrics(run_id, {"accuracy": accuracy}, model_id=model_id, dataset=found)
            version = registry.register_version(
                name=name,
                manifest=manifest,
                bundle=bundle,
                pushed_path=pushed,
                served_version=served,
                run_id=run_id,
                metrics={"accuracy": accuracy},
                mlmd={"model_artifact_id": 7},
                by="test",
            )
        return Story(
            home,
            name,
            data,
            digest,
            checkpoint,
            bundle,
            manifest,
            pushed,
            ids["run_id"],
            export_run,
            run_id,
            version,
        )

    return run


def _train(home: Path, data: Path, digest: str, name: str, content: str) -> tuple[Path, dict[str, str]]:
    checkpoint = home / "checkpoints" / name / content
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(f"weights {content}".encode())
    weights = sha256_file(checkpoint / "model.safetensors")
    with tracking.start_stage_run(
        experiment=name,
        stage="train",
        run_name=content,
        params={"model": {"name": "resnet18"}},
        tags={"name": name},
    ) as active:
        run_id = active.info.run_id
        tracking.log_dataset(run_id, name="digits", digest=digest, source="made", profile={"train": 2})
        tracking.log_metrics(run_id, {"val_top1": 0.9}, step=0)
        client = registry.store_client()
        torch_model = client.create_logged_model(
            active.info.experiment_id,
            name="torch",
            source_run_id=run_id,
            tags={"isthmus.weights_sha256": weights},
        )
        tracking.link_models(run_id, outputs=[torch_model.model_id])
        tracking.log_tags(run_id, {"weights_sha256": weights, "checkpoint": str(checkpoint)})
        ids = {"run_id": run_id, "model_id": torch_model.model_id, "experiment_id": active.info.experiment_id}
    write_json(
        checkpoint / "checkpoint.json",
        {
            "schema_version": 1,
            "name": name,
            "weights_sha256": weights,
            "dataset": {"name": "digits", "root": str(data), "digest": digest, "splits": {"train": 2}},
            "source": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False, "remote": None},
            "metrics": {"test_top1": 0.98},
            "mlflow": ids,
        },
    )
    return checkpoint, ids


def _export(
    home: Path,
    name: str,
    content: str,
    *,
    digest: str,
    checkpoint: Path,
    ids: dict[str, str],
    changes: dict[str, Any],
) -> tuple[Path, dict[str, Any], str]:
    bundle = home / "bundles" / name / content
    saved_model = bundle / "saved_model"
    (saved_model / "assets").mkdir(parents=True)
    (saved_model / "assets.extra").mkdir()
    (bundle / "model.onnx").write_bytes(f"onnx {content}".encode())
    (saved_model / "saved_model.pb").write_bytes(f"graph {content}".encode())
    (saved_model / "assets" / "labels.txt").write_text("0\n1\n")
    with tracking.start_stage_run(experiment=name, stage="export", run_name=content) as active:
        run_id = active.info.run_id
        tracking.link_models(run_id, inputs=[ids["model_id"]])
        reserved = models.reserve(run_id)
        manifest = {
            "schema_version": 1,
            "name": name,
            "source": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False, "remote": None},
            "dataset": {"name": "digits", "source": "made", "digest": digest, "splits": {"train": 2}},
            "model": {"name": "resnet18", "labels": ["0", "1"]},
            "training": {
                "checkpoint_sha256": sha256_file(checkpoint / "model.safetensors"),
                "checkpoint": str(checkpoint),
                "metrics": {"test_top1": 0.98},
                "source": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False, "remote": None},
                "mlflow": ids,
            },
            "export": {
                "onnx_sha256": sha256_file(bundle / "model.onnx"),
                "opset": 17,
                "exporter": "torchscript",
                "rung": "onnx2tf",
                "precision": "fp32",
                "mlflow": {
                    "run_id": run_id,
                    "onnx_model_id": reserved["onnx"],
                    "saved_model_id": reserved["saved_model"],
                },
            },
            "parity": {
                "passed": True,
                "gates": asdict(GateConfig()),
                "stages": [{"stage": "torch→onnx", "error": 1e-6, "limit": 1e-3, "passed": True}],
            },
            "overrides": [],
            "saved_model_digest": tree_digest(saved_model),
            "files": file_table(bundle),
        } | changes
        for copy in models.MANIFEST_COPIES:
            (saved_model / copy).write_text(canonical_json(manifest))
        write_json(bundle / "manifest.json", manifest)
        models.log_onnx_model(
            run_id, onnx_path=bundle / "model.onnx", model_id=reserved["onnx"], input_model_id=ids["model_id"]
        )
        models.log_saved_model(
            run_id, saved_model=saved_model, model_id=reserved["saved_model"], input_model_id=reserved["onnx"]
        )
    return bundle, manifest, run_id
