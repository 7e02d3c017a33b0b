"""BundleImporter: the Model artifact, its links, and a damaged bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isthmus.export import bundle as bundles
from isthmus.export.errors import ExportError
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.model_artifact import broken_files, manifest_of, saved_model_of


def test_model_artifact(
    make_bundle: Callable[..., Path], import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = bundles.load(make_bundle())
    model = import_bundle(bundle.path, tmp_path / "model")
    assert Path(model.uri, "Format-Serving", "saved_model.pb").is_file()
    assert saved_model_of(model) == Path(model.uri, "Format-Serving")
    assert manifest_of(model) == bundle.manifest
    assert broken_files(model) == []
    assert (
        Path(saved_model_of(model), "assets.extra", "manifest.json").read_bytes()
        == (bundle.saved_model / "assets.extra" / "manifest.json").read_bytes()
    )


def test_links_are_properties(
    make_bundle: Callable[..., Path], import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = bundles.load(make_bundle())
    model = import_bundle(bundle.path, tmp_path / "model")
    for key, value in (
        ("name", "colours"),
        ("git_commit", "0" * 40),
        ("dataset_digest", bundle.manifest["dataset"]["digest"]),
        ("checkpoint_sha256", "1" * 64),
        ("onnx_sha256", bundle.manifest["export"]["onnx_sha256"]),
        ("saved_model_digest", bundle.manifest["saved_model_digest"]),
        ("rung", "direct"),
    ):
        assert model.get_string_custom_property(key) == value


def test_a_changed_file_is_named(
    make_bundle: Callable[..., Path], import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(make_bundle(), tmp_path / "bundle"))
    (bundle / "saved_model" / "assets" / "labels.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(
        PipelineError, match=r"is damaged: saved_model/assets/labels\.txt: sha256 .* export it again"
    ):
        import_bundle(bundle, tmp_path / "model")


def test_several_labels_an_image_are_refused(
    multi_label_bundle: Path, import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(
        PipelineError, match=r"/multi-label is a multi_label model; the pipeline's images have"
    ):
        import_bundle(multi_label_bundle, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_an_interrupted_export_is_no_bundle(
    make_bundle: Callable[..., Path], import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(make_bundle(), tmp_path / "bundle"))
    (bundle / "manifest.json").unlink()
    with pytest.raises(ExportError, match=r"holds no manifest\.json"):
        import_bundle(bundle, tmp_path / "model")


def test_a_model_artifact_that_was_changed_is_seen(
    make_bundle: Callable[..., Path], import_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    model = import_bundle(make_bundle(), tmp_path / "model")
    with open(Path(model.uri, "Format-Serving", "saved_model.pb"), "ab") as file:
        file.write(b"\0")
    Path(model.uri, "reference.npz").write_bytes(b"")
    manifest = Path(model.uri, "manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": "other"}))
    assert [line.split(" is ")[0] for line in broken_files(model)] == [
        "the SavedModel",
        "reference.npz",
        "assets/manifest.json inside the SavedModel",
        "assets.extra/manifest.json inside the SavedModel",
    ]
