"""From images to an answer: the commands of the README, one after the other, on the real digits."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


def test_one_command_ends_with_the_pushed_version_and_its_accuracy(
    first_run: list[str], pushed: Path
) -> None:
    ending = "\n".join(first_run[-6:])
    assert f"{pushed}" in ending
    assert "accuracy" in ending
    assert len(first_run) <= 3 * 30, "a person reads this"


def test_no_process_held_both_frameworks(first_run: list[str], environment: dict[str, str]) -> None:
    del first_run
    assert not Path(environment["BOTH_FRAMEWORKS"]).exists()


def test_the_served_model_says_what_torch_says_image_for_image(store: Path, pushed: Path) -> None:
    split = store / "data/digits/test"
    torch_says, tensorflow_says = (
        json.loads(
            subprocess.check_output(
                [sys.executable, ROOT / "benchmarks" / program, model, split], timeout=300
            )
        )
        for program, model in (
            ("predict_torch.py", store / "checkpoints/digits/latest"),
            ("predict_saved_model.py", pushed),
        )
    )
    assert len(torch_says) == len(list(split.rglob("*.png"))) > 200
    assert torch_says == tensorflow_says
    right = sum(path.split("/")[0] == str(class_id) for path, class_id in torch_says.items())
    assert right / len(torch_says) >= 0.97


def test_a_second_run_does_no_work_and_says_so(
    store: Path, pushed: Path, make: Callable[..., list[str]]
) -> None:
    lines = make("train", "export", "pipeline", f"STORE={store}")
    assert sum("up to date" in line for line in lines) >= 3, lines
    assert [folder.name for folder in (store / "serving/digits").iterdir()] == [pushed.name]
    names = {path.name for path in (store / "bundles/digits").glob("[!.]*")}
    assert names == {"latest", (store / "bundles/digits/latest").resolve().name}


def test_lineage_goes_back_to_the_commit_and_the_data(store: Path, pushed: Path) -> None:
    digest = json.loads((store / "data/digits/dataset.json").read_text())["digest"]
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    for subject in ("models:/digits@champion", str(pushed)):
        tree = subprocess.check_output(
            [BIN / "isthmus", "lineage", subject, "--home", store], cwd=ROOT, text=True, timeout=120
        )
        assert digest[:12] in tree
        assert commit[:7] in tree
        assert pushed.name in tree


@pytest.fixture(scope="module")
def ports(store: Path, pushed: Path, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """The gRPC and REST ports of `make serve`."""
    del pushed
    grpc_port, rest_port = free_ports(2)
    server = subprocess.Popen(
        ["make", "--silent", "serve", f"STORE={store}", f"PORT={grpc_port}", f"REST_PORT={rest_port}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_available(rest_port)
        yield grpc_port, rest_port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until_available(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models/digits", timeout=5) as answer:
                if json.load(answer)["model_version_status"][0]["state"] == "AVAILABLE":
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise AssertionError("the server did not become available")


def predict(port: int, image: bytes) -> dict[str, object]:
    body = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/digits:predict", data=json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (prediction,) = json.load(answer)["predictions"]
    return dict(prediction)


def test_a_running_server_says_where_its_model_came_from(store: Path, ports: tuple[int, int]) -> None:
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    question = ["lineage", "--server", f"127.0.0.1:{ports[0]}", "--model", "digits", "--home", store]
    tree = subprocess.check_output([BIN / "isthmus", *question], text=True, timeout=120)
    assert commit[:7] in tree
    assert "champion" in tree


def test_the_server_reads_a_png_of_every_digit(store: Path, ports: tuple[int, int]) -> None:
    right = 0
    for digit in range(10):
        image = next((store / "data/digits/test" / str(digit)).glob("*.png")).read_bytes()
        prediction = predict(ports[1], image)
        assert set(prediction) == {"probabilities", "class_id", "label"}
        right += prediction["label"] == str(digit)
    assert right >= 9
