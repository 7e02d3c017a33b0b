"""The protocol between the export's processes: answers, refusals, crashes, kills, time-outs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isthmus.export.errors import ExportError
from isthmus.export.jobs import JobRunner

CHILD = """
import os, signal, sys, time
from isthmus.export.errors import ExportError
from isthmus.export.jobs import append_progress, serve_job

def work(folder, request):
    print("noise on stdout")
    match request["do"]:
        case "answer": return {"sum": sum(request["numbers"])}
        case "tell":
            for number in request["numbers"]:
                append_progress(folder, {"number": number})
                time.sleep(0.1)
            return {}
        case "refuse": raise ExportError("the model has no head; train one")
        case "bug": raise KeyError("no such tensor")
        case "die": os.kill(os.getpid(), signal.SIGKILL)
        case "leave": os._exit(3)
        case "sleep": time.sleep(60)

sys.exit(serve_job(sys.argv[1:], work))
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRunner:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    return JobRunner(log_path=tmp_path / "logs" / "export.log", timeout_s=20)


def run(runner: JobRunner, tmp_path: Path, **request: Any) -> dict[str, Any]:
    return runner.run("a_child", tmp_path / "job", request)


def test_the_result_comes_back_and_the_noise_goes_to_the_log(runner: JobRunner, tmp_path: Path) -> None:
    result = run(runner, tmp_path, do="answer", numbers=[1, 2, 3])
    assert result["sum"] == 6
    # Its own, not this process's: a Python that imported little.
    assert 2**20 < result["peak_memory_bytes"] < 2**28
    text = runner.log_path.read_text()
    assert "python -m a_child" in text
    assert "noise on stdout" in text


def test_what_a_job_tells_in_between_arrives_in_order(runner: JobRunner, tmp_path: Path) -> None:
    told: list[int] = []
    with runner.start("a_child", tmp_path / "job") as job:
        job.send({"do": "tell", "numbers": [3, 1, 2]})
        job.answer(on_progress=lambda value: told.append(value["number"]))
    assert told == [3, 1, 2]


def test_a_refusal_is_its_own_text(runner: JobRunner, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        run(runner, tmp_path, do="refuse")
    assert str(caught.value) == "the model has no head; train one"


def test_a_bug_says_where_its_traceback_is(runner: JobRunner, tmp_path: Path) -> None:
    text = r"a_child failed: KeyError: 'no such tensor'; the traceback is in .*export\.log"
    with pytest.raises(ExportError, match=text):
        run(runner, tmp_path, do="bug")
    assert 'raise KeyError("no such tensor")' in runner.log_path.read_text()


@pytest.mark.parametrize(
    ("do", "text"),
    [
        ("die", r"a_child was killed by SIGKILL \(out of memory\?\); see .*export\.log"),
        ("leave", r"a_child ended with exit code 3 and no result; see .*export\.log"),
    ],
)
def test_a_death_is_named(runner: JobRunner, tmp_path: Path, do: str, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        run(runner, tmp_path, do=do)


def test_a_job_that_takes_too_long_is_stopped(runner: JobRunner, tmp_path: Path) -> None:
    quick = JobRunner(log_path=runner.log_path, timeout_s=1)
    with pytest.raises(ExportError, match="a_child took longer than 1 s and was stopped"):
        run(quick, tmp_path, do="sleep")


def test_a_job_waits_for_its_request_and_ends_with_its_block(runner: JobRunner, tmp_path: Path) -> None:
    with runner.start("a_child", tmp_path / "job") as job:
        time.sleep(0.3)
        assert job.process.poll() is None
        job.send({"do": "answer", "numbers": [4]})
        assert job.answer()["sum"] == 4
    with runner.start("a_child", tmp_path / "another") as job:
        pass
    assert job.process.poll() is not None


def test_a_job_does_not_outlive_a_killed_parent(tmp_path: Path, runner: JobRunner) -> None:
    import signal
    import subprocess

    parent = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from isthmus.export.jobs import JobRunner\n"
        "job = JobRunner(log_path=Path(sys.argv[1]), timeout_s=60).start('a_child', Path(sys.argv[2]))\n"
        "job.send({'do': 'sleep'})\n"
        "time.sleep(1.5)\n"
        "print(job.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", parent, str(runner.log_path), str(tmp_path / "job")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    # A container's first process may never collect it: a zombie does no work.
    return state != "Z" and os.path.exists(f"/proc/{pid}")
