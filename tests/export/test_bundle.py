"""The bundle on disk: what was sealed comes back, what was touched is named, half-written ones are unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from isthmus.export import bundle
from isthmus.export.errors import ExportError
from isthmus.lineage.files import canonical_json

MANIFEST: dict[str, Any] = {
    "name": "toy",
    "created": "2026-11-22T10:00:00Z",
    "source": {"commit": None, "dirty": None, "remote": None},
    "dataset": {"name": "toy", "digest": "d" * 64},
    "recipe": {"name": "toy"},
    "model": {"name": "resnet10t", "labels": ["größer", "kleiner"]},
    "preprocessing": {},
    "training": {},
    "export": {"fingerprint": "f1"},
    "versions": {},
    "parity": {"passed": True, "gates": {}, "stages": []},
    "overrides": [],
}


def staged(folder: Path) -> Path:
    """A bundle that lacks only its manifest."""
    (folder / "saved_model" / "assets").mkdir(parents=True)
    (folder / "saved_model" / "variables").mkdir()
    for name in ("model.onnx", "reference.npz", "parity.json", "parity.png", "saved_model/saved_model.pb"):
        (folder / name).write_bytes(name.encode() * 10)
    (folder / "saved_model" / "assets" / "labels.txt").write_text("a\nb\n")
    return folder


def publish(bundles: Path, name: str, **changes: Any) -> bundle.Bundle:
    folder = staged(bundles / f".staging-{name}" / "bundle")
    bundle.seal(folder, {**MANIFEST, **changes})
    return bundle.publish(folder, bundles / name)


def test_what_is_published_comes_back(tmp_path: Path) -> None:
    published = publish(tmp_path, "20261122-100000-abcd")
    again = bundle.load(tmp_path / "latest")
    assert again == published
    assert again.path == tmp_path / "20261122-100000-abcd"
    assert again.manifest["schema_version"] == bundle.SCHEMA_VERSION
    assert {key: again.manifest[key] for key in MANIFEST} == MANIFEST
    assert again.verify() == []
    assert os.readlink(tmp_path / "latest") == "20261122-100000-abcd"


def test_the_manifest_travels_inside_the_saved_model_twice_on_one_line(tmp_path: Path) -> None:
    published = publish(tmp_path, "b1")
    for copy in bundle.MANIFEST_COPIES:
        lines = (published.saved_model / copy).read_text(encoding="utf-8").splitlines()
        assert lines == [canonical_json(published.manifest)]
    listed = published.manifest["files"]
    assert sorted(listed) == [
        "model.onnx",
        "parity.json",
        "parity.png",
        "reference.npz",
        "saved_model/assets/labels.txt",
        "saved_model/saved_model.pb",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.onnx", "model.onnx: sha256"),
        ("parity.json", "parity.json: sha256"),
        ("saved_model/saved_model.pb", "saved_model/saved_model.pb: sha256"),
        ("saved_model/assets/labels.txt", "saved_model/assets/labels.txt: sha256"),
        (
            "saved_model/assets/manifest.json",
            "saved_model/assets/manifest.json: not the same as manifest.json",
        ),
        ("saved_model/assets.extra/manifest.json", "saved_model/assets.extra/manifest.json: not the same"),
    ],
)
def test_one_flipped_bit_is_named(tmp_path: Path, name: str, text: str) -> None:
    published = publish(tmp_path, "b1")
    path = published.path / name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))
    broken = bundle.load(published.path).verify()
    assert any(line.startswith(text) for line in broken), broken


def test_a_changed_manifest_disagrees_with_its_copies(tmp_path: Path) -> None:
    published = publish(tmp_path, "b1")
    manifest = json.loads((published.path / "manifest.json").read_text())
    manifest["parity"]["passed"] = False
    (published.path / "manifest.json").write_text(json.dumps(manifest))
    assert bundle.load(published.path).verify() == [
        "saved_model/assets/manifest.json: not the same as manifest.json",
        "saved_model/assets.extra/manifest.json: not the same as manifest.json",
    ]


def test_added_and_removed_files_are_named(tmp_path: Path) -> None:
    published = publish(tmp_path, "b1")
    (published.saved_model / "assets" / "labels.txt").unlink()
    (published.path / "extra.bin").write_bytes(b"x")
    broken = published.verify()
    assert "saved_model/assets/labels.txt: missing" in broken
    assert "extra.bin: not in the manifest" in broken
    assert any("saved_model_digest" in line for line in broken)


def test_a_bundle_without_its_manifest_is_not_one(tmp_path: Path) -> None:
    half = staged(tmp_path / "b1")
    with pytest.raises(
        ExportError, match=r"holds no manifest\.json: not a bundle, or an export that was inter"
    ):
        bundle.load(half)
    assert list(bundle.published(tmp_path)) == []


def test_missing_parts_are_named(tmp_path: Path) -> None:
    published = publish(tmp_path, "b1")
    (published.path / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"is incomplete: no model\.onnx; export again"):
        bundle.load(published.path)


@pytest.mark.parametrize("content", ['{"schema_version": 99}', "[]", "{}"])
def test_another_schema_is_refused(tmp_path: Path, content: str) -> None:
    folder = staged(tmp_path / "b1")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match=r"has schema version .*; this isthmus reads 1"):
        bundle.load(folder)


def test_broken_json_is_one_clear_line(tmp_path: Path) -> None:
    folder = staged(tmp_path / "b1")
    (folder / "manifest.json").write_text('{"schema_ver')
    with pytest.raises(ExportError, match=r"manifest\.json cannot be read"):
        bundle.load(folder)


def test_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no bundle at .*nowhere; run `isthmus export` first"):
        bundle.load(tmp_path / "nowhere")


def test_published_passes_over_what_is_hidden_or_foreign(tmp_path: Path) -> None:
    publish(tmp_path, "20261122-100000-aaaa")
    publish(tmp_path, "20261122-110000-bbbb")
    staged(tmp_path / ".staging-dead" / "bundle")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    names = [found.path.name for found in bundle.published(tmp_path)]
    assert names == ["20261122-110000-bbbb", "20261122-100000-aaaa"]


def test_the_fingerprint_finds_an_intact_bundle_only(tmp_path: Path) -> None:
    old = publish(tmp_path, "b1", export={"fingerprint": "f1"})
    publish(tmp_path, "b2", export={"fingerprint": "f2"})
    found = bundle.find_by_fingerprint(tmp_path, "f1")
    assert found is not None
    assert found.path == old.path
    assert bundle.find_by_fingerprint(tmp_path, "f3") is None
    (old.path / "model.onnx").write_bytes(b"changed")
    assert bundle.find_by_fingerprint(tmp_path, "f1") is None


def test_a_published_bundle_is_never_overwritten(tmp_path: Path) -> None:
    publish(tmp_path, "b1")
    folder = staged(tmp_path / ".staging-x" / "bundle")
    bundle.seal(folder, MANIFEST)
    with pytest.raises(FileExistsError):
        bundle.publish(folder, tmp_path / "b1")


def test_ids_sort_by_time() -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
    ids = [bundle.new_id(now), bundle.new_id(now + timedelta(seconds=1))]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261122-235959-")
