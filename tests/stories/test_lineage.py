"""What serves, where it came from, how to go back: two models, from training to a rollback, on the real digits."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@dataclass
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def isthmus(store: Path, environment: dict[str, str]) -> Callable[..., Told]:
    """`isthmus("registry", "list")` on the store; succeeds unless another `code` is expected."""

    def run(*arguments: str | Path, code: int = 0, **variables: str) -> Told:
        done = subprocess.run(
            [BIN / "isthmus", *arguments, "--home", store],
            cwd=ROOT,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Told(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def keys(store: Path) -> tuple[Path, Path]:
    """A key pair: (private, public)."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = store.parent / "signing.pem", store.parent / "signing.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@dataclass
class Serving:
    """`isthmus serve`, and the file it was started with."""

    address: str
    models_config: Path


@pytest.fixture(scope="module")
def serving(
    store: Path, pushed: Path, isthmus: Callable[..., Told], environment: dict[str, str]
) -> Iterator[Serving]:
    """A server of the champion, version 1, under its label `stable`."""
    models_config = store.parent / "models.config"
    told = isthmus("registry", "sync", "digits", "--models-config", models_config)
    assert told.out.strip() == f"digits has stable = {pushed.name} everywhere"
    flags = ["--port=0", "--rest_api_port=0", f"--model_config_file={models_config}"]
    server = subprocess.Popen(
        [BIN / "isthmus", "serve", *flags, "--allow_version_labels_for_unavailable_models"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["grpc_port"]
        yield Serving(f"127.0.0.1:{port}", models_config)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        # Reads what is left, and closes the pipe.
        server.communicate(timeout=60)


@dataclass
class Second:
    """The second model: pushed as challenger, signed."""

    number: str
    bundle: Path
    pushed: Path
    between: str
    """A time after it was pushed and before it was promoted."""


@pytest.fixture(scope="module")
def second(isthmus: Callable[..., Told], pushed: Path, keys: tuple[Path, Path]) -> Second:
    """Train, export (signed) and push (the signature is asked for) a second model."""
    private, public = (str(key) for key in keys)
    recipe = ("--config", "recipes/digits.yaml")
    gate = (
        "--set",
        "pipeline.evaluation.min_accuracy=0.5",
        "--set",
        "pipeline.evaluation.max_accuracy_drop=0.5",
    )
    isthmus("train", *recipe, "--seed", "7", "--epochs", "5", "--json")
    said = isthmus(
        "export", *recipe, "--json", ISTHMUS_SIGNING_KEY=private, ISTHMUS_VERIFICATION_KEY=public
    ).json()
    run = isthmus("pipeline", *recipe, *gate, "--json", ISTHMUS_VERIFICATION_KEY=public).json()
    assert run["registered_version"] == 2
    place = Path(run["pushed"])
    assert place.parent == pushed.parent
    between = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Second(place.name, Path(said["bundle"]), place, between)


@pytest.fixture(scope="module")
def promoted(isthmus: Callable[..., Told], serving: Serving, second: Second) -> Told:
    """The server is named once; the second model is its canary, and then its stable."""
    told = isthmus(
        "registry", "sync", "digits", "--server", serving.address, "--models-config", serving.models_config
    )
    assert f"canary = {second.number} everywhere" in told.out
    return isthmus("registry", "promote", "digits", "--why", "a story")


def labels(serving: Serving) -> dict[str, int]:
    from isthmus.serving.client import GrpcClient
    from isthmus.serving.label_sync import labels_on

    with GrpcClient(port=int(serving.address.rpartition(":")[2])) as client:
        return labels_on(client, "digits")


def test_a_promotion_reaches_the_server_and_the_time_between_is_known(
    isthmus: Callable[..., Told], promoted: Told, serving: Serving, second: Second
) -> None:
    assert "version 2 is the champion of digits now (it was version 1)" in promoted.out
    assert labels(serving) == {"stable": int(second.number)}
    now = isthmus("lineage", "models:/digits@champion", "--json").json()
    then = isthmus("lineage", "models:/digits@champion", "--at", second.between, "--json").json()
    assert (now["chain"]["id"], then["chain"]["id"]) == ("digits/2", "digits/1")
    served = isthmus("lineage", "--server", serving.address, "--model", "digits", "--json").json()
    assert served["chain"]["id"] == "digits/2"


def test_every_subject_leads_to_the_chain(
    isthmus: Callable[..., Told], promoted: Told, store: Path, pushed: Path, second: Second
) -> None:
    """One process asks for all of them: each command line is a second of imports."""
    del promoted
    data = json.loads((store / "data/digits/dataset.json").read_text())["digest"]
    manifest = json.loads((second.bundle / "manifest.json").read_text())
    commit = manifest["training"]["source"]["commit"]
    from isthmus.lineage import query

    def versions(subject: str | Path) -> set[str | None]:
        root = query.lineage(str(subject), home=store).root
        return {node.id for node in root.find("version")}

    both, new = {"digits/1", "digits/2"}, {"digits/2"}
    assert versions(data) == versions(data[:12]) == versions(store / "data/digits") == both
    assert versions(commit) >= new
    for subject in (
        "models:/digits/2",
        second.pushed,
        second.bundle,
        second.bundle / "model.onnx",
        manifest["training"]["checkpoint"],
        manifest["training"]["mlflow"]["run_id"],
        manifest["training"]["mlflow"]["model_id"],
        manifest["export"]["mlflow"]["saved_model_id"],
    ):
        assert versions(subject) == new, subject
    assert versions(pushed) == {"digits/1"}


def test_mlflow_and_mlmd_name_each_other_and_every_slice_is_linked(
    promoted: Told, store: Path, second: Second
) -> None:
    del promoted
    from isthmus.lineage import registry, tracking

    client = tracking.connect(store)
    version = registry.get("digits", 2)
    ids = json.loads((second.bundle / "manifest.json").read_text())["export"]["mlflow"]
    training = json.loads((second.bundle / "manifest.json").read_text())["training"]["mlflow"]
    with closing(sqlite3.connect(f"file:{store / 'metadata.db'}?mode=ro", uri=True)) as mlmd:
        query = "SELECT name, string_value FROM ArtifactProperty WHERE artifact_id = ?"
        properties = dict(mlmd.execute(query, (version.tag("mlmd.model_artifact_id"),)).fetchall())
    for name, value in (
        ("torch_model_id", training["model_id"]),
        ("training_run_id", training["run_id"]),
        ("onnx_model_id", ids["onnx_model_id"]),
        ("saved_model_id", ids["saved_model_id"]),
        ("export_run_id", ids["run_id"]),
        ("saved_model_digest", version.saved_model_digest),
    ):
        assert properties[name] == value, name
    measured = client.get_logged_model(ids["saved_model_id"]).metrics
    of_slices = [metric for metric in measured if metric.key.startswith("accuracy/")]
    assert len(of_slices) >= 10
    for metric in of_slices:
        assert metric.dataset_digest == str(version.tag("dataset_digest"))[:36]
        assert metric.run_id == version.run_id


SCORE = """
import json, sys
from pathlib import Path
import pandas
from isthmus.lineage import tracking
tracking.connect(Path(sys.argv[1]))
import mlflow
image = Path(sys.argv[3]).read_bytes()
if sys.argv[2] == "saved_model":
    frame = pandas.DataFrame({"image_bytes": [image]})
    by_pyfunc = mlflow.pyfunc.load_model("models:/digits/2").predict(frame)
    import tensorflow
    function = mlflow.tensorflow.load_model("models:/digits/2")
    by_tensorflow = function(image_bytes=tensorflow.constant([image]))
    answers = [by_pyfunc["class_id"][0], by_tensorflow["class_id"].numpy()[0]]
else:
    import io
    import torch
    from PIL import Image
    from timm.data import create_transform
    model = mlflow.pytorch.load_model(f"models:/{sys.argv[2]}").eval()
    transform = create_transform(**json.loads(sys.argv[4]))
    with torch.no_grad():
        answers = [model(transform(Image.open(io.BytesIO(image)).convert("RGB"))[None])[0].argmax()]
print(json.dumps([int(answer) for answer in answers]))
"""


def test_mlflow_loads_and_scores_both_models(
    promoted: Told, store: Path, second: Second, environment: dict[str, str]
) -> None:
    del promoted
    manifest = json.loads((second.bundle / "manifest.json").read_text())
    image = next((store / "data/digits/test/7").glob("*.png"))
    answers = []
    for which in ("saved_model", manifest["training"]["mlflow"]["model_id"]):
        done = subprocess.run(
            [sys.executable, "-c", SCORE, store, which, image, json.dumps(manifest["preprocessing"])],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers += json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 3
    assert len(set(answers)) == 1, answers


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """One bit of a file is another for a while."""
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    try:
        yield
    finally:
        path.write_bytes(content)


def test_one_flipped_bit_is_found_by_every_check(
    isthmus: Callable[..., Told], promoted: Told, second: Second, keys: tuple[Path, Path]
) -> None:
    del promoted
    public = str(keys[1])
    verify = ("lineage", "models:/digits/2", "--verify", "--verification-key", public)
    whole = isthmus(*verify, "--json").json()
    statuses = {check["link"]: check["status"] for check in whole["checks"]}
    assert statuses["signature → served files"] == statuses["signature → bundle files"] == "holds"
    assert "broken" not in statuses.values()
    with flipped(second.bundle / "model.onnx"):
        said = isthmus(*verify, code=1).out
        assert "model.onnx was changed" in said
    graph = max(
        (path for path in second.pushed.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    with flipped(graph):
        said = isthmus(*verify, code=1).out
        assert said.count(f"{graph.relative_to(second.pushed)} was changed") == 2, "by hash and by signature"
        isthmus("registry", "rollback", "digits")
        refused = isthmus("registry", "promote", "digits", "2", "--verification-key", public, code=3).err
        assert "pushed version: " in refused
        assert "signature: " in refused
        assert "Traceback" not in refused
    isthmus("registry", "promote", "digits", "2", "--verification-key", public)


def test_an_unsigned_bundle_is_refused_before_anything_runs(
    isthmus: Callable[..., Told], second: Second, keys: tuple[Path, Path]
) -> None:
    folders = second.bundle.parent.iterdir()
    unsigned = min(
        path for path in folders if path.is_dir() and not path.is_symlink() and path.name[0] != "."
    )
    arguments = ("pipeline", "--config", "recipes/digits.yaml", "--bundle", unsigned)
    error = isthmus(*arguments, code=1, ISTHMUS_VERIFICATION_KEY=str(keys[1])).err.splitlines()[-1]
    assert error.startswith("error: not pushed, because")
    assert "is not signed (no assets.extra/model.sig)" in error


def test_a_rollback_is_one_command_and_the_history_is_whole(
    isthmus: Callable[..., Told], promoted: Told, serving: Serving, pushed: Path, second: Second
) -> None:
    del promoted
    isthmus("registry", "rollback", "digits", "--why", "enough of it")
    assert labels(serving) == {"stable": int(pushed.name), "canary": int(second.number)}
    entries = isthmus("registry", "history", "digits", "--json").json()
    moves = [(entry["action"], entry["to_version"]) for entry in entries]
    assert moves[:4] == [("register", 1), ("first", 1), ("register", 2), ("promote", 2)]
    assert moves[-1] == ("rollback", 1)
    assert entries[-1]["why"] == "enough of it"
    assert entries[3]["verdicts"]["signature"] == "not asked for"


def test_killed_at_every_step_the_next_command_makes_everybody_say_the_same(
    store: Path, environment: dict[str, str], promoted: Told, serving: Serving, pushed: Path, second: Second
) -> None:
    del promoted
    program = Path(__file__).parent / "killed_commands.py"
    done = subprocess.run(
        [sys.executable, program, store, "digits", serving.address, serving.models_config],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 9
    versions = {1: int(pushed.name), 2: int(second.number)}
    for line in lines:
        step = f"{line['action']} killed at {line['step']!r}: {line}"
        assert line["killed"] == -signal.SIGKILL, step
        assert (line["next"], line["asked"]) == (0, 0), step
        assert line["faults"] == line["behind"] == [], step
        assert line["history"] == line["alias"], step
        assert line["wanted"]["stable"] == versions[line["alias"]], step
        assert line["server"] == line["models_config"] == line["wanted"], step
    decided = [line["step"] != "checked" for line in lines]
    assert [line["alias"] for line in lines] == [1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert decided == [False] + [True] * 8, (
        "a move is decided by its entry in the history and by nothing before"
    )
