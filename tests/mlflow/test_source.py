"""Git state, versions, code digests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.lineage import source


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_state_of_a_repository(tmp_path):
    _git(tmp_path, "init", "-q")
    assert source.git_state(tmp_path) == {"commit": None, "dirty": None, "remote": None}
    (tmp_path / "x").write_text("1")
    _git(tmp_path, "add", "x")
    _git(tmp_path, "commit", "-q", "-m", "first")
    _git(tmp_path, "remote", "add", "origin", "https://user:secret@example.org/x.git")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    state = source.git_state(tmp_path)
    assert state == {"commit": commit, "dirty": False, "remote": "https://example.org/x.git"}
    (tmp_path / "untracked").touch()
    assert source.git_state(tmp_path)["dirty"] is False
    (tmp_path / "x").write_text("2")
    assert source.git_state(tmp_path)["dirty"] is True
    assert source.has_commit(commit, tmp_path)
    assert not source.has_commit("0" * 40, tmp_path)


def test_outside_a_repository_and_without_git_nothing_is_known(tmp_path, monkeypatch):
    nothing = {"commit": None, "dirty": None, "remote": None}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source.git_state(tmp_path) == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source.git_state(tmp_path) == nothing


def test_library_versions_lists_what_is_installed():
    versions = source.library_versions(["no-such-distribution", "pytest"])
    assert versions == {"pytest": pytest.__version__}


def test_code_digest_follows_the_code_and_imports_nothing(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never run')")
    (package / "sub" / "module.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source.code_digest("some_package")
    (package / "notes.txt").write_text("not code")
    assert source.code_digest("some_package") == before
    (package / "sub" / "module.py").write_text("x = 2")
    assert source.code_digest("some_package") != before
    with pytest.raises(ModuleNotFoundError, match="no package 'some_other_package'"):
        source.code_digest("some_other_package")


@pytest.mark.parametrize(
    "module", ["files", "source", "config", "errors", "tracking", "registry", "query", "render"]
)
def test_importing_a_module_does_not_import_mlflow(module):
    code = f"import sys, isthmus.lineage.{module}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
