"""The export stage: what it publishes, what it refuses and what it leaves behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from isthmus.export import bundle as bundles
from isthmus.export import checkpoint as checkpoints
from isthmus.export import manifest as manifests
from isthmus.export.config import STAGES, ExportConfig, GateConfig, Override, ReducedGateConfig
from isthmus.export.errors import ExportError, ParityRefusedError
from isthmus.export.ladder import in_order
from isthmus.export.run import export
from isthmus.lineage import parity_limits

RECIPE = {"name": "toy", "data": {"root": Path("images")}}


def run(checkpoint: Path, home: Path, config: ExportConfig | None = None, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "name": "toy",
        "checkpoint": checkpoint,
        "data_root": None,
        "config": config or ExportConfig(reference_images=16),
        "home": home,
        "recipe": RECIPE,
        **changes,
    }
    return export(**arguments)


def visible(home: Path) -> list[str]:
    folder = home / "bundles" / "toy"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_without_images_nothing_starts(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no images at .*nowhere: parity is measured on real ones"):
        run(checkpoint, tmp_path, data_root=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def fingerprint_of(checkpoint: Path, config: ExportConfig, data_root: Path) -> str:
    return manifests.fingerprint(
        checkpoints.read(checkpoint), config=config, recipe=RECIPE, data_root=data_root.resolve()
    )


def publish(checkpoint: Path, home: Path, bundle_id: str, export: dict[str, Any]) -> bundles.Bundle:
    """A bundle as an earlier export may have left it, its files one byte each."""
    staged = home / "bundles" / "toy" / ".staging-x" / "bundle"
    (staged / "saved_model").mkdir(parents=True)
    for name in ("model.onnx", "reference.npz", "parity.json", "parity.png", "saved_model/saved_model.pb"):
        (staged / name).write_bytes(b"x")
    start = manifests.provisional(name="toy", checkpoint=checkpoints.read(checkpoint), recipe=RECIPE)
    bundles.seal(staged, {**start, "export": export, "overrides": []})
    return bundles.publish(staged, home / "bundles" / "toy" / bundle_id)


def test_an_unchanged_export_is_found_and_not_repeated(
    checkpoint: Path, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ExportConfig()
    fingerprint = fingerprint_of(checkpoint, config, data_root)
    published = publish(checkpoint, tmp_path, "20261122-100000-aaaa", {"fingerprint": fingerprint})
    with caplog.at_level(logging.INFO, "isthmus.export"):
        assert run(checkpoint, tmp_path, config) == published.path
    assert caplog.messages == [f"export is up to date: {published.path}"]
    (published.path / "model.onnx").write_bytes(b"y")
    assert bundles.find_by_fingerprint(tmp_path / "bundles" / "toy", fingerprint) is None


def test_an_export_that_another_store_has_recorded_is_repeated(
    checkpoint: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isthmus.lineage import models, tracking

    class StartedError(Exception):
        pass

    def start(*_: object) -> None:
        raise StartedError

    config = ExportConfig()
    tracking.connect(tmp_path)
    with tracking.start_stage_run(experiment="toy", stage="export") as stage_run:
        known = models.reserve(stage_run.info.run_id)["saved_model"]
    export = {"fingerprint": fingerprint_of(checkpoint, config, data_root)}
    here = publish(
        checkpoint, tmp_path, "20261122-100000-aaaa", {**export, "mlflow": {"saved_model_id": known}}
    )
    publish(
        checkpoint, tmp_path, "20261122-110000-bbbb", {**export, "mlflow": {"saved_model_id": "m-elsewhere"}}
    )
    monkeypatch.setattr("isthmus.export.run.staging", start)

    assert run(checkpoint, tmp_path, config) == here.path
    with pytest.raises(StartedError):
        run(checkpoint, tmp_path, config, tracking_uri=f"sqlite:///{tmp_path}/other.db")


def test_the_fingerprint_follows_everything_an_export_depends_on(
    checkpoint: Path, data_root: Path, tmp_path: Path
) -> None:
    source = checkpoints.read(checkpoint)

    def of(**changes: Any) -> str:
        arguments = {"config": ExportConfig(), "recipe": RECIPE, "data_root": data_root, **changes}
        return manifests.fingerprint(source, **arguments)

    copied = Path(shutil.copytree(data_root, tmp_path / "data", copy_function=shutil.copy2))
    assert of() == of()
    assert of(data_root=copied) == of()
    (copied / "test" / "red" / "0.png").unlink()
    others = [
        of(config=ExportConfig(gates=GateConfig(logit_error=1e-4))),
        of(config=ExportConfig(rungs=("direct",))),
        of(recipe={"name": "another"}),
        of(data_root=copied),
    ]
    assert len({of(), *others}) == 5


def test_the_manifest_is_plain_json_with_every_link(checkpoint: Path) -> None:
    source = checkpoints.read(checkpoint)
    start = manifests.provisional(name="toy", checkpoint=source, recipe=RECIPE)
    assert json.loads(json.dumps(start)) == start
    assert start["training"]["checkpoint_sha256"] == source.record["weights_sha256"]
    assert start["recipe"]["data"]["root"] == "images"
    assert "root" not in start["dataset"]
    assert start["parity"] == {"passed": False, "gates": {}, "stages": []}
    assert {"torch", "timm", "tensorflow", "onnx2tf"} <= set(start["versions"])


def test_the_manifest_names_what_was_trained_and_not_what_the_recipe_says_since(checkpoint: Path) -> None:
    source = checkpoints.read(checkpoint)
    trained = {"name": "old", "model": {"name": "resnet50"}, "train": {"epochs": 3}, "export": {"rungs": []}}
    source.record["recipe"] = trained
    now = {
        "name": "toy",
        "data": {"root": "images"},
        "model": {"name": "x"},
        "train": {"epochs": 20},
        "export": {},
    }
    recipe = manifests.provisional(name="toy", checkpoint=source, recipe=now)["recipe"]
    assert recipe == {**now, "model": trained["model"], "train": trained["train"]}
    assert (
        manifests.provisional(name="toy", checkpoint=checkpoints.read(checkpoint), recipe=now)["recipe"]
        == now
    )


def test_an_onnx_file_that_is_not_the_model_stops_the_export(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = ExportConfig(reference_images=16, gates=GateConfig(logit_error=1e-12))
    with (
        caplog.at_level(logging.INFO, "isthmus.export"),
        pytest.raises(ParityRefusedError) as caught,
    ):
        run(checkpoint, tmp_path, strict)
    text = str(caught.value)
    assert text.startswith("toy is not exported, it would not be the same model. torch → ONNX Runtime: ")
    assert ", limit 1.0e-12, worst on test/" in text
    assert visible(tmp_path) == [".lock"]
    report = next((tmp_path / "logs").glob("export-toy-*-parity.json"))
    assert json.loads(report.read_text())["passed"] is False
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("torch → ONNX Runtime   FAILED: ") for line in caplog.messages)


@pytest.mark.slow
def test_a_killed_export_then_the_same_one_then_nothing_to_do(
    checkpoint: Path, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _export_and_kill(checkpoint, tmp_path)
    assert any(name.startswith(".staging-") for name in visible(tmp_path))

    with caplog.at_level(logging.INFO, "isthmus.export"):
        path = run(checkpoint, tmp_path)
    assert visible(tmp_path) == [".lock", path.name, "latest"]
    published = bundles.load(tmp_path / "bundles" / "toy" / "latest")
    assert published.path == path
    assert published.verify() == []
    _check_links(published, data_root)
    assert [line.split("  ")[0] for line in caplog.messages if "limit" in line] == [
        "torch → ONNX Runtime",
        "torch → SavedModel",
        "preprocessing",
        "image bytes → answer",
        "server over gRPC",
        "server over REST",
    ]
    _check_mlflow(tmp_path, published)
    assert not {"tensorflow"} & set(sys.modules)

    caplog.clear()
    with caplog.at_level(logging.INFO, "isthmus.export"):
        assert run(checkpoint, tmp_path) == path
    assert caplog.messages == [f"export is up to date: {path}"]


def _export_and_kill(checkpoint: Path, home: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from isthmus.export.config import ExportConfig\n"
        "from isthmus.export.run import export\n"
        "export(name='toy', checkpoint=Path(sys.argv[1]), data_root=None, home=Path(sys.argv[2]),\n"
        "       config=ExportConfig(reference_images=16), recipe={'name': 'toy'})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint), str(home)], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list(home.glob("bundles/toy/.staging-*/bundle/reference.npz")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)


def _check_links(published: bundles.Bundle, data_root: Path) -> None:
    manifest = published.manifest
    assert manifest["parity"]["passed"] is True
    assert manifest["parity"]["gates"] == asdict(GateConfig())
    assert [stage["stage"] for stage in manifest["parity"]["stages"]] == list(STAGES)
    assert manifest["export"]["rung"] == manifest["export"]["rungs_tried"][-1]["rung"]
    assert manifest["export"]["onnx_sha256"] == manifest["files"]["model.onnx"]["sha256"]
    assert manifest["overrides"] == []
    assert str(data_root) not in json.dumps(manifest["dataset"])


def _check_mlflow(home: Path, published: bundles.Bundle) -> None:
    from isthmus.lineage import tracking

    client = tracking.connect(home)
    ids = published.manifest["export"]["mlflow"]
    run_record = client.get_run(ids["run_id"])
    assert run_record.info.status == "FINISHED"
    assert {output.model_id for output in run_record.outputs.model_outputs} == {
        ids["onnx_model_id"],
        ids["saved_model_id"],
    }
    model = client.get_logged_model(ids["saved_model_id"])
    assert model.tags["isthmus.saved_model_digest"] == published.manifest["saved_model_digest"]
    metrics = {metric.key: metric.value for metric in model.metrics or []}
    assert metrics["parity/preprocessing/error"] == 0.0
    assert metrics["parity/end_to_end/error"] < 1e-3


@pytest.mark.slow
def test_an_override_publishes_and_is_recorded(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ExportConfig(
        reference_images=16,
        rungs=("direct",),
        gates=GateConfig(logit_error=1e-12),
        overrides=tuple(Override(gate=stage, who="Ada", why="a rehearsal") for stage in STAGES),
    )
    with caplog.at_level(logging.WARNING, "isthmus.export"):
        published = bundles.load(run(checkpoint, tmp_path, config))
    manifest = published.manifest
    assert manifest["parity"]["passed"] is False
    assert [row["gate"] for row in manifest["overrides"]] == list(STAGES)
    assert {row["who"] for row in manifest["overrides"]} == {"Ada"}
    assert manifest["export"]["rungs_tried"][0]["passed"] is False
    assert "published although torch → SavedModel failed: an override is recorded" in caplog.messages


def test_a_model_with_attention_goes_by_the_direct_rung_first() -> None:
    assert in_order(("onnx2tf", "direct"), attention=False) == ("onnx2tf", "direct")
    assert in_order(("onnx2tf", "direct"), attention=True) == ("direct", "onnx2tf")
    assert in_order(("onnx2tf",), attention=True) == ("onnx2tf",)


@pytest.mark.slow
def test_a_bundle_in_bf16_with_a_tflite_keeps_its_answers_and_says_by_which_limits(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = ExportConfig(
        reference_images=16, rungs=("direct",), precision="bf16", formats=("saved_model", "tflite")
    )
    published = bundles.load(run(checkpoint, tmp_path, config))
    assert published.verify() == []
    assert published.litert is not None
    export, parity = published.manifest["export"], published.manifest["parity"]
    assert "model.tflite" in published.manifest["files"]
    assert (export["precision"], export["formats"]) == ("bf16", ["saved_model", "tflite"])
    assert export["litert"]["batch"] == "dynamic"
    # The toy's data has no further split: all 24 images are evaluated on.
    assert export["reduced"]["evaluation"] == {"split": "test", "num_images": 24}
    assert export["reduced"]["limits"] == asdict(ReducedGateConfig())
    stages = {stage["stage"]: stage for stage in parity["stages"]}
    assert list(stages) == [*STAGES, "precision", "litert"]
    assert all(stage["passed"] for stage in stages.values())
    assert stages["onnxruntime"]["limit"] == 1e-3
    for name in ("saved_model", "end_to_end", "server_grpc", "server_rest", "precision"):
        # Another arithmetic, not another model: far beyond fp32's rounding, and the same answers.
        assert stages[name]["limit"] is None
        assert stages[name]["error"] > 1e-4
        assert stages[name]["top1_agreement"] >= 0.99
    assert stages["precision"]["metric"]["num_images"] == 24
    assert stages["precision"]["metric"]["drop"] <= 0.005
    assert parity_limits.loose_limits(parity) == []
