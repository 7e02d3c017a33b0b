from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from isthmus.cli import doctor
from isthmus.cli.main import main


@pytest.fixture
def tracking_server() -> Iterator[str]:
    """A server that answers /health as MLflow's does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_this_environment_is_whole(tmp_path: Path) -> None:
    findings = doctor.examine(home=tmp_path, tracking_uri=None)
    assert not [finding.line() for finding in findings if finding.problem]
    found = {finding.what: finding.found for finding in findings}
    assert found["torch"] == metadata.version("torch")
    assert "GiB free" in found["disk"]
    assert found["tracking"].endswith("(made by the first run)")


def test_a_tracking_server_that_answers(tmp_path: Path, tracking_server: str) -> None:
    finding = doctor.examine(home=tmp_path, tracking_uri=tracking_server)[-1]
    assert (finding.found, finding.problem) == (f"{tracking_server} answers 200", "")


def test_a_tracking_server_that_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--home", str(tmp_path), "--tracking-uri", "http://127.0.0.1:9"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert "http://127.0.0.1:9: does not answer" in line
    assert line.endswith("leave --tracking-uri out to use the SQLite file")


def test_a_library_of_another_version_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "1.0")
    line = doctor._library("timm").line()
    assert line.startswith("wrong")
    assert "isthmus needs ==1.0.31" in line


def test_a_library_that_is_absent_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    finding = doctor._library("tfx")
    assert (finding.found, finding.problem) == ("not installed; isthmus[pipeline] brings it", "")
