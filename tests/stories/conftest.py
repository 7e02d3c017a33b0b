"""What the stories share: one store, in which the README's one command has been run once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Every Python of the story writes a line where it meets both frameworks in itself.
WATCH_FRAMEWORKS = """
import atexit, os, sys
def report():
    if {"torch", "tensorflow"} <= set(sys.modules):
        with open(os.environ["BOTH_FRAMEWORKS"], "a") as file:
            print(sys.argv, file=file)
atexit.register(report)
"""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the stories."""
    return tmp_path_factory.mktemp("story") / "store"


@pytest.fixture(scope="session")
def environment(store: Path) -> dict[str, str]:
    """The environment of every process of a story."""
    watch = store.parent / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH_FRAMEWORKS)
    dropped = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "PYTHONPATH": str(watch), "BOTH_FRAMEWORKS": str(store.parent / "both")}


@pytest.fixture(scope="session")
def make(environment: dict[str, str]) -> Callable[..., list[str]]:
    """`make("train", "STORE=…")` runs make and gives the lines it printed."""

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            ["make", "--silent", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture(scope="session")
def first_run(store: Path, make: Callable[..., list[str]]) -> list[str]:
    """The output of the one command, on an empty store."""
    return make("train", "export", "pipeline", f"STORE={store}")


@pytest.fixture(scope="session")
def pushed(store: Path, first_run: list[str]) -> Path:
    """The version that the one command pushed."""
    del first_run
    (version,) = [folder for folder in (store / "serving/digits").iterdir() if folder.name.isdecimal()]
    return version
