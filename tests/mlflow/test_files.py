"""Digests and publishing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.lineage import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "b").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"1")
    (root / "b" / "c.txt").write_bytes(b"2")
    return root


def test_tree_digest_is_what_its_docstring_says(folder):
    lines = "".join(
        f"{name}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a.txt", b"1"), ("b/c.txt", b"2"))
    )
    assert files.tree_digest(folder) == hashlib.sha256(lines.encode()).hexdigest()


def test_tree_digest_sees_names_and_contents_and_nothing_else(folder):
    before = files.tree_digest(folder)
    os.utime(folder / "a.txt", (1, 1))
    (folder / "empty").mkdir()
    assert files.tree_digest(folder) == before
    (folder / "a.txt").rename(folder / "z.txt")
    assert files.tree_digest(folder) != before
    assert files.tree_digest(folder, exclude=["z.txt", "b/c.txt"]) == hashlib.sha256(b"").hexdigest()


def test_tree_digest_refuses_what_a_copy_would_not_have(folder, tmp_path):
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link is a link to a folder"):
        files.tree_digest(folder)
    with pytest.raises(FileNotFoundError, match=r"a\.txt is not a folder"):
        files.tree_digest(folder / "a.txt")


def test_broken_files_names_each_kind(folder):
    table = files.file_table(folder)
    assert files.broken_files(folder, table) == []
    (folder / "a.txt").write_bytes(b"x")
    (folder / "b" / "c.txt").unlink()
    (folder / "new").touch()
    assert files.broken_files(folder, table) == [
        "a.txt was changed",
        "b/c.txt is missing",
        "new does not belong",
    ]
    assert files.broken_files(folder, table, exclude=["a.txt", "b/c.txt", "new"]) == []


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans(), st.none())))
def test_canonical_json_is_one_line_and_independent_of_order(value):
    text = files.canonical_json(value)
    assert "\n" not in text
    assert text == files.canonical_json(dict(reversed(value.items())))


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"x": float("nan")})
    target = tmp_path / "x.json"
    files.write_json(target, {"b": 1, "a": [2]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(target, float("inf"))
    assert files.read_json(target) == {"a": [2], "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_publish_never_overwrites(folder, tmp_path):
    target = tmp_path / "deep" / "target"
    files.publish_directory(folder, target)
    assert (target / "b" / "c.txt").read_bytes() == b"2"
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(FileExistsError, match="never overwritten"):
        files.publish_directory(folder, target)


def test_latest_is_a_relative_link_that_is_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        files.point_latest(tmp_path / "runs" / "latest", tmp_path / "runs" / name)
        assert os.readlink(tmp_path / "runs" / "latest") == name
    with pytest.raises(FileExistsError, match="one is not a link"):
        files.point_latest(tmp_path / "runs" / "one", tmp_path / "runs" / "two")


def test_staging_goes_unless_it_was_published(tmp_path):
    with files.staging_directory(tmp_path) as staging:
        (staging / "x").touch()
        assert staging.name.startswith(".staging-")
    with files.staging_directory(tmp_path) as staging:
        files.publish_directory(staging, tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
