"""Places in an object store, on an S3-compatible one."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.tfx_pipeline import remote
from isthmus.tfx_pipeline.errors import PipelineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tree with a file of no bytes and one whose name promises compression."""
    root = tmp_path / "tree"
    (root / "below" / "deep").mkdir(parents=True)
    (root / "below" / "deep" / "a.gz").write_bytes(b"not compressed")
    (root / "INFRA_BLESSED").write_bytes(b"")
    (root / "manifest.json").write_bytes(b"{}")
    return root


def content(root: Path) -> dict[str, bytes]:
    """{relative path: bytes}."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_there_and_back(folder: Path, bucket: str) -> None:
    place = f"{bucket}/there"
    assert remote.files(place) == []
    assert remote.send_tree(folder, place, marker="manifest.json") == 3
    assert [entry.name for entry in remote.files(place)] == [
        "INFRA_BLESSED",
        "below/deep/a.gz",
        "manifest.json",
    ]
    with remote.local_tree(place) as copy:
        assert content(copy) == content(folder)
    assert not copy.exists()


def test_an_upload_goes_on_where_it_was(folder: Path, bucket: str) -> None:
    place = f"{bucket}/again"
    remote.write_bytes(f"{place}/below/deep/a.gz", b"not compressed")
    assert remote.send_tree(folder, place) == 2
    assert remote.send_tree(folder, place) == 0
    (folder / "manifest.json").write_bytes(b"{} ")
    assert remote.send_tree(folder, place) == 1


def test_a_local_place_is_itself(folder: Path) -> None:
    with remote.local_tree(str(folder)) as same:
        assert same == folder
    assert [entry.name for entry in remote.files(str(folder))] == [
        "INFRA_BLESSED",
        "below/deep/a.gz",
        "manifest.json",
    ]


def test_delete(folder: Path, bucket: str) -> None:
    place = f"{bucket}/gone"
    remote.send_tree(folder, place)
    remote.delete([f"{place}/manifest.json"])
    assert not remote.exists(f"{place}/manifest.json")
    assert remote.exists(f"{place}/INFRA_BLESSED")


def test_nothing_there(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=f"^nothing at {bucket}/none$"):
        remote.fetch_tree(f"{bucket}/none", tmp_path / "target")
    with pytest.raises(PipelineError, match=f"^cannot read {bucket}/none/x: "):
        remote.read_bytes(f"{bucket}/none/x")


@pytest.mark.parametrize("place", ["minio://bucket/x", "ftp://host/x"])
def test_an_unknown_scheme(place: str) -> None:
    with pytest.raises(PipelineError, match="known are gs://, s3://, hdfs:// and paths"):
        remote.files(place)


def test_no_google_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line at once: Beam itself tries for two minutes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    remote._check_google_credentials.cache_clear()
    with pytest.raises(
        PipelineError, match=r"^no credentials for gs:// here; run `gcloud auth application\-default login`"
    ):
        remote.files("gs://bucket/x")


def test_an_unreachable_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(PipelineError, match=f"^cannot write {bucket}/x: .*") as raised:
        remote.write_bytes(f"{bucket}/x", b"x")
    assert "\n" not in str(raised.value)
