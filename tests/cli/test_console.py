from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli.console import routed


def test_our_lines_reach_the_terminal_and_the_rest_only_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with routed("train", tmp_path) as path:
        logging.getLogger("isthmus.training.train").info("epoch 1 of 3")
        logging.getLogger("isthmus.training.train").debug("a detail")
        logging.getLogger("absl").info("one of five thousand lines")
    assert capsys.readouterr().out == "epoch 1 of 3\n"
    log = path.read_text()
    assert path.parent == tmp_path / "logs"
    for line in ("epoch 1 of 3", "a detail", "one of five thousand lines"):
        assert line in log


def test_a_result_has_standard_output_for_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with routed("train", tmp_path, result_on_stdout=True):
        logging.getLogger("isthmus.training.train").info("epoch 1 of 3")
        print("{}")
    assert capsys.readouterr() == ("{}\n", "epoch 1 of 3\n")


def test_capture_also_takes_what_is_written_to_the_descriptors(tmp_path: Path) -> None:
    program = f"""
import logging, os
from pathlib import Path
from isthmus.cli.console import routed
with routed("pipeline", Path({str(tmp_path)!r}), capture=True):
    os.write(1, b"from C++ on 1\\n"); os.write(2, b"from C++ on 2\\n"); print("a print")
    logging.getLogger("isthmus.tfx_pipeline").info("Pusher done")
print("after")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "Pusher done\nafter\n"
    assert done.stderr == ""
    (log,) = (tmp_path / "logs").iterdir()
    for line in ("from C++ on 1", "from C++ on 2", "a print", "Pusher done"):
        assert line in log.read_text()


def test_logging_is_as_before_afterwards(tmp_path: Path) -> None:
    ours, root = logging.getLogger("isthmus"), logging.getLogger()
    before = (ours.level, root.level, list(ours.handlers), list(root.handlers))
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), routed("train", tmp_path, capture=False):
        raise ZeroDivisionError
    assert (ours.level, root.level, list(ours.handlers), list(root.handlers)) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
