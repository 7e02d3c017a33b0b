"""The folder an export works in: gone at the end, gone after a kill -9, never taken from who works in it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.export.staging import remove_abandoned, staging

HOLD = """
import subprocess, sys, time
from pathlib import Path
from isthmus.export.staging import staging
with staging(Path(sys.argv[1])) as stage:
    (stage.path / "half.onnx").write_bytes(b"half")
    if sys.argv[2] == "child":
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        child = subprocess.Popen(sleep, pass_fds=(stage.lock,))
        print(child.pid, flush=True)
    else:
        print("ready", flush=True)
    time.sleep(60)
"""


def hold(bundles: Path, kind: str = "alone") -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(bundles), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def folders(bundles: Path) -> list[Path]:
    return sorted(bundles.glob(".staging-*"))


def test_the_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with staging(tmp_path) as stage:
        assert folders(tmp_path) == [stage.path]
    assert folders(tmp_path) == []


def test_the_folder_is_gone_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path) as stage:
            (stage.path / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folders(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    left = folders(tmp_path)
    assert len(left) == 1
    stop(process)
    with staging(tmp_path) as stage:
        assert folders(tmp_path) == [stage.path]
        assert stage.path not in left


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    try:
        with staging(tmp_path):
            assert len(folders(tmp_path)) == 2
        assert len(folders(tmp_path)) == 1
    finally:
        stop(process)


def test_a_child_that_outlives_its_parent_keeps_the_folder(tmp_path: Path) -> None:
    import os
    import time

    process, child = hold(tmp_path, "child")
    stop(process)
    assert remove_abandoned(tmp_path) == []
    os.kill(int(child), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not remove_abandoned(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert folders(tmp_path) == []


def test_a_folder_without_a_lock_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".staging-old").mkdir()
    assert remove_abandoned(tmp_path) == [tmp_path / ".staging-old"]
