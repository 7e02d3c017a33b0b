"""Serving folders on a file system and in an object store: whole versions or none."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isthmus.tfx_pipeline import publishing, remote
from isthmus.tfx_pipeline.errors import PipelineError


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """Stands for a SavedModel: several files, one of them large enough that its copy takes a while."""
    folder = tmp_path / "saved_model"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "large").write_bytes(bytes(20_000_000))
    (folder / "saved_model.pb").write_bytes(b"graph")
    return folder


def test_a_server_sees_the_whole_version_or_none(saved_model: Path, tmp_path: Path) -> None:
    base, seen, done = tmp_path / "serving", [], threading.Event()
    base.mkdir()

    def poll() -> None:
        while not done.is_set():
            for folder in base.iterdir():
                if folder.name.isdecimal():
                    large = folder / "assets" / "large"
                    seen.append((folder / "saved_model.pb").exists() and large.stat().st_size == 20_000_000)

    watcher = threading.Thread(target=poll)
    watcher.start()
    for _ in range(3):
        publishing.push(saved_model, str(base))
    done.set()
    watcher.join()
    assert all(seen)
    assert len(publishing.versions(str(base))) == 3


def test_versions_only_grow(saved_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "serving"
    (base / "99999999999").mkdir(parents=True)
    assert publishing.push(saved_model, str(base)) == 100000000000
    assert publishing.push(saved_model, str(base)) == 100000000001


def test_a_half_written_push_is_cleared_away_and_is_no_version(saved_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "serving"
    half = base / ".pushing-1700000000"
    half.mkdir(parents=True)
    (half / "saved_model.pb").write_bytes(b"gr")
    (base / "1700000000").mkdir()
    assert publishing.versions(str(base)) == []
    version = publishing.push(saved_model, str(base))
    assert not half.exists()
    assert publishing.versions(str(base)) == [version]


@pytest.fixture
def base(bucket: str, tmp_path: Path) -> str:
    """A serving folder of the test's own."""
    return f"{bucket}/{tmp_path.name}/colours"


def keys(base: str) -> list[str]:
    """Everything below a serving folder in the store."""
    return [entry.name for entry in remote.files(base)]


def test_a_model_is_pushed_to_an_object_store_once(make_bundle: Callable[..., Path], base: str) -> None:
    bundle = make_bundle()
    digest = json.loads((bundle / "manifest.json").read_text())["saved_model_digest"]
    assert publishing.versions(base) == []
    version = publishing.push(bundle / "saved_model", base)
    assert publishing.versions(base) == [version]
    assert publishing.pushed_version(base, digest) == version
    assert publishing.pushed_version(base, "0" * 64) is None
    there = {path.relative_to(bundle / "saved_model").as_posix() for path in files_of(bundle / "saved_model")}
    assert set(keys(base)) == {f"{version}/{name}" for name in there}
    assert publishing.push(bundle / "saved_model", base) > version


def files_of(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_marker_is_uploaded_when_everything_else_is_there(
    make_bundle: Callable[..., Path], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is cut off before each object in turn: at no moment is there a version that is not whole."""
    saved_model = make_bundle() / "saved_model"
    num_files, create = len(files_of(saved_model)), remote._create

    for allowed in range(num_files):
        left = [allowed]

        def limited(place: str, *, empty: bool, left: list[int] = left) -> Any:
            if not left[0]:
                raise ConnectionError("the network is gone")
            left[0] -= 1
            return create(place, empty=empty)

        monkeypatch.setattr(remote, "_create", limited)
        monkeypatch.setattr(remote, "_NUM_TRANSFERS", 1)
        with pytest.raises(PipelineError, match="the network is gone"):
            publishing.push(saved_model, base)
        assert publishing.versions(base) == []
    monkeypatch.setattr(remote, "_create", create)
    version = publishing.push(saved_model, base)
    assert publishing.versions(base) == [version]
    assert {name.split("/")[0] for name in keys(base)} == {str(version)}, "what was cut off is gone"


def test_a_version_in_a_store_that_lost_a_file_is_not_the_model(
    make_bundle: Callable[..., Path], base: str
) -> None:
    bundle = make_bundle()
    version = publishing.push(bundle / "saved_model", base)
    digest = json.loads((bundle / "manifest.json").read_text())["saved_model_digest"]
    variables = [name for name in keys(base) if "variables/" in name or "fingerprint" in name]
    remote.delete([remote.join(base, variables[0])])
    assert publishing.versions(base) == [version]
    assert publishing.pushed_version(base, digest) is None


def test_a_store_that_refuses_is_one_line(make_bundle: Callable[..., Path], bucket: str) -> None:
    with pytest.raises(PipelineError, match=r"cannot .* s3://nobody-made-this/colours") as raised:
        publishing.push(make_bundle() / "saved_model", "s3://nobody-made-this/colours")
    assert "\n" not in str(raised.value)


def test_a_pushed_version_can_be_fetched_whole(
    make_bundle: Callable[..., Path], base: str, tmp_path: Path
) -> None:
    saved_model = make_bundle() / "saved_model"
    version = publishing.push(saved_model, base)
    remote.fetch_tree(remote.join(base, str(version)), tmp_path / "fetched")
    fetched = {p.relative_to(tmp_path / "fetched"): p.read_bytes() for p in files_of(tmp_path / "fetched")}
    assert fetched == {p.relative_to(saved_model): p.read_bytes() for p in files_of(saved_model)}
    shutil.rmtree(tmp_path / "fetched")
