"""The admin page's API, and what the page itself is made of; `test_browser.py` looks at it in a browser."""

import http.client
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from isthmus.serving import admin_page
from isthmus.serving.process import ServerProcess

ADMIN = {"X-Isthmus-Admin": "1"}


@pytest.fixture(scope="module")
def server(models_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of an image model and of one that takes numbers."""
    config = tmp_path_factory.mktemp("config") / "models.config"
    entries = "".join(
        f"config {{ name: '{name}' base_path: '{models_root / folder}' model_platform: 'tensorflow' }} "
        for name, folder in (("colours", "colours"), ("half", "half_plus_n"))
    )
    config.write_text(f"model_config_list {{ {entries} }}")
    flags = [f"--model_config_file={config}", "--admin_port=0"]
    with ServerProcess("unused", models_root / "colours", flags=flags) as server:
        yield server


def ask(
    server: ServerProcess,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes, str]:
    """Status, body and content type."""
    assert server.admin_port is not None
    connection = http.client.HTTPConnection("127.0.0.1", server.admin_port, timeout=20)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers["content-type"]


def test_overview(server: ServerProcess) -> None:
    status, content, kind = ask(server, "GET", "/status.json")
    assert (status, kind) == (200, "application/json")
    colours, half = json.loads(content)["models"]
    assert (colours["name"], half["name"]) == ("colours", "half")
    (version,) = colours["versions"]
    assert (version["version"], version["state"], version["error"]) == ("1", "AVAILABLE", "")
    assert version["lineage"] == {
        "model": "colour_mean",
        "dataset": "crayons",
        "commit": "0123456789ab",
        "parity": "passed",
    }
    assert half["versions"][0]["lineage"] == {}


@pytest.mark.parametrize("version", ["", "&version=1"])
def test_prediction(server: ServerProcess, version: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 0, 0)).save(buffer, "png")
    status, content, _ = ask(server, "POST", f"/predict?model=colours{version}", buffer.getvalue(), ADMIN)
    assert status == 200, content
    outputs = json.loads(content)["outputs"]
    assert outputs["label"] == ["red"]
    assert outputs["probabilities"][0][0] > 0.9


@pytest.mark.parametrize(
    ("path", "headers", "status", "text"),
    [
        ("/predict?model=colours", {}, 403, "send the header X-Isthmus-Admin: 1"),
        ("/predict?model=colours", ADMIN, 400, "Unknown image file format"),
        (
            "/predict?model=half",
            ADMIN,
            400,
            "half takes no encoded images: serving_default has not one input, a string",
        ),
        ("/predict?model=nope", ADMIN, 404, "Servable not found for request: Latest(nope)"),
        ("/predict", ADMIN, 400, "ModelSpec has no name specified."),
        (
            "/predict?model=colours&version=9",
            ADMIN,
            404,
            "Servable not found for request: Specific(colours, 9)",
        ),
    ],
)
def test_refused(server: ServerProcess, path: str, headers: dict[str, str], status: int, text: str) -> None:
    answered, content, _ = ask(server, "POST", path, b"no image", headers)
    assert answered == status
    assert text in json.loads(content)["error"]


def test_a_version_of_thousands_of_digits_is_a_bad_request(server: ServerProcess) -> None:
    answered, content, _ = ask(server, "GET", f"/manifest.json?model=colours&version={'9' * 5000}")
    assert answered == 400
    assert json.loads(content)["error"].startswith("Failed to convert version: 999")


def test_methods_and_paths(server: ServerProcess) -> None:
    assert ask(server, "POST", "/status.json", b"")[0] == 405
    assert ask(server, "GET", "/predict?model=colours")[0] == 404
    status, page, kind = ask(server, "GET", "/")
    assert (status, page, kind) == (200, admin_page.html(), "text/html; charset=utf-8")


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = admin_page.html().decode()
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert "innerHTML" not in page
    policy = admin_page.content_security_policy().decode()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
