"""The admin page in a real browser: headless Chromium (Debian: apt-get install chromium), driven over its DevTools
protocol. Without a browser this fails: a page that nobody looked at is not tested."""

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from PIL import Image
from websockets.sync.client import connect

from isthmus.serving.client import GrpcClient
from isthmus.serving.process import ServerProcess


class NavigatedError(Exception):
    """The page went before it answered."""


class Browser:
    """One page of a headless Chromium with a profile of its own."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.fail("the admin page is tested in a browser, and there is none: apt-get install chromium")
        self._folder = folder
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "--window-size=1100,900",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        try:
            port_file = self._folder / "DevToolsActivePort"
            self.wait_until(lambda: port_file.exists() and len(port_file.read_text().splitlines()) == 2, 60)
            port, path = port_file.read_text().splitlines()
            self._opened = connect(f"ws://127.0.0.1:{port}{path}", max_size=2**26, proxy=None)
            self._socket = self._opened.__enter__()
            self._session = ""
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, value, traceback)
        self._process.terminate()
        self._process.wait(20)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise NavigatedError
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def choose_file(self, selector: str, file: Path) -> None:
        """Give a file to an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screenshot(self, file: Path) -> None:
        """The page as a PNG."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def problems(self) -> list[Any]:
        """Errors of scripts, of the console and of the content security policy; requests to elsewhere."""
        found = []
        for event in self.events:
            kind, told = event["method"], event["params"]
            is_error = kind == "Runtime.exceptionThrown" or (
                kind == "Log.entryAdded" and told["entry"]["level"] == "error"
            )
            if is_error:
                found.append(told)
            if kind == "Network.requestWillBeSent":
                url = told["request"]["url"]
                if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:,")):
                    found.append(url)
        return found

    @staticmethod
    def wait_until(condition: Any, timeout_s: float = 20) -> None:
        """Until the condition holds; it may ask a page that is just being left for the next."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(NavigatedError):
                if condition():
                    return
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)


def png(colour: tuple[int, int, int]) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.slow
def test_the_page_shows_the_models_and_predicts(models_root: Path, tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text(
        "model_config_list { config { name: '<b>colours</b>' base_path: '"
        + str(models_root / "colours")
        + "' "
        "model_platform: 'tensorflow' version_labels { key: 'stable' value: 1 } "
        "version_labels { key: 'champion' value: 1 } } "
        "config { name: 'half' base_path: '"
        + str(models_root / "half_plus_n")
        + "' model_platform: 'tensorflow' "
        "model_version_policy { all {} } } }"
    )
    flags = [
        f"--model_config_file={config}",
        "--admin_port=0",
        "--allow_version_labels_for_unavailable_models",
    ]
    green = tmp_path / "green.png"
    green.write_bytes(png((10, 200, 20)))
    with (
        ServerProcess("unused", models_root / "colours", flags=flags) as server,
        Browser(tmp_path / "profile") as browser,
        GrpcClient(port=server.grpc_port) as client,
    ):
        browser.send("Page.navigate", url=f"http://127.0.0.1:{server.admin_port}/")
        text = "(document.body || {innerText: ''}).innerText"
        browser.wait_until(lambda: browser.evaluate(f"{text}.split('AVAILABLE').length") == 5)
        shown = browser.evaluate(text)
        for expected in (
            "<b>colours</b>",
            "stable",
            "★ champion",
            "lineage",
            "commit 0123456789ab",
            "dataset crayons",
            "parity passed",
        ):
            assert expected in shown
        browser.choose_file("input[type=file]", green)
        browser.wait_until(lambda: "green (class 1)" in browser.evaluate(text))
        for _ in range(5):
            client.predict("half", {"x": [1.0]})
        browser.wait_until(lambda: "Predict over GRPC" in browser.evaluate(text))
        browser.wait_until(lambda: "green (class 1)" in browser.evaluate(text))
        shown = (
            "[...document.querySelectorAll('.drop')].map(zone => getComputedStyle(zone).display != 'none')"
        )
        assert browser.evaluate(shown) == [True, False]
        browser.screenshot(tmp_path / "admin.png")
        # Before the manifest, which is plain JSON: for that one Chromium asks for an icon of its own accord.
        assert browser.problems() == []
        browser.evaluate("document.querySelector('a[href*=manifest]').click()")
        browser.wait_until(lambda: '"name": "crayons"' in browser.evaluate(text))
