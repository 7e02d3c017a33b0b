"""mlflow/server for real: PostgreSQL from Debian's package, an S3 store on loopback, passwords, webhooks."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from isthmus.lineage import history, tracking, webhooks
from isthmus.lineage.errors import LineageError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "mlflow" / "server"
PASSWORD = "a-password-for-the-test"
SECRET = "a-secret-for-the-test-only"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL cluster of its own, and an empty database in it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert programs, "PostgreSQL is missing: install the package postgresql"
    folder = tmp_path_factory.mktemp("postgres")
    as_user: list[str] = []
    if os.getuid() == 0:
        # The server refuses to run as root; the package made a user for it.
        owner = pwd.getpwnam("postgres")
        as_user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
            parent.chmod(parent.stat().st_mode | 0o055)
    tools, port = programs[-1].parent, free_port()
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def do(tool: str, *arguments: str) -> None:
        subprocess.run(
            [*as_user, str(tools / tool), *arguments],
            check=True,
            capture_output=True,
            cwd=folder,
            env=environment,
        )

    do("initdb", "-D", str(data), "-U", "mlflow", "--auth=trust", "-N")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    do("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
    try:
        do("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        do("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, str]]:
    """An S3-compatible store with a bucket; the environment that finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="artifacts")
    yield environment
    server.stop()


@dataclass(frozen=True)
class Team:
    uri: str
    database: str
    objects: dict[str, str]


@pytest.fixture(scope="module")
def team(database: str, objects: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The server, started by mlflow/server/start.sh."""
    from cryptography.fernet import Fernet

    port, folder = free_port(), tmp_path_factory.mktemp("team")
    environment = {
        **os.environ,
        **objects,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # SQLAlchemy's own choice for postgresql:// is another driver than the one that the extra brings.
        "ISTHMUS_DATABASE": database.replace("postgresql:", "postgresql+psycopg2:"),
        "ISTHMUS_ARTIFACTS": "s3://artifacts/mlflow",
        "ISTHMUS_PORT": str(port),
        "ISTHMUS_WORKERS": "1",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-for-the-test",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["sh", str(FOLDER / "start.sh")],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
            ):
                break
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield Team(uri=f"http://127.0.0.1:{port}", database=database, objects=objects)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


@pytest.fixture
def connected(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return tracking.connect(tmp_path, team.uri)


def test_who_has_no_password_is_refused_in_one_line(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for password in (None, "wrong"):
        if password is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(LineageError) as caught:
            tracking.connect(tmp_path, team.uri)
        assert "\n" not in str(caught.value)
        assert "MLFLOW_TRACKING_USERNAME" in str(caught.value)


def test_runs_lie_in_postgresql_and_artifacts_in_the_object_store(team: Team, connected: Any) -> None:
    import boto3
    import mlflow
    import psycopg2

    with tracking.start_stage_run(experiment="team", stage="train", params={"train": {"lr": 0.1}}) as run:
        mlflow.log_text("some words", "notes/words.txt")
        tracking.log_metrics(run.info.run_id, {"val_top1": 0.5})
    assert connected.get_run(run.info.run_id).data.metrics == {"val_top1": 0.5}
    with contextlib.closing(psycopg2.connect(team.database)) as connection, connection.cursor() as cursor:
        cursor.execute("select status from runs where run_uuid = %s", (run.info.run_id,))
        assert cursor.fetchall() == [("FINISHED",)]
        # Users are there too, so that every replica of the server knows them.
        cursor.execute("select username from users")
        assert ("admin",) in cursor.fetchall()
    store = boto3.client(
        "s3",
        endpoint_url=team.objects["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    keys = [each["Key"] for each in store.list_objects_v2(Bucket="artifacts").get("Contents", [])]
    assert any(key.startswith("mlflow/") and key.endswith("notes/words.txt") for key in keys)


def test_writers_of_the_history_lose_nothing(connected: Any) -> None:
    connected.create_registered_model("together")
    for _ in range(5):
        connected.create_model_version("together", "s3://artifacts/somewhere")
    before = history.read(connected, "together")
    assert before == []

    def write(number: int) -> None:
        history.append(
            connected,
            "together",
            action="promote",
            to_version=number,
            log=before,
            by="a test",
            why="together",
        )

    write(1)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = history.read(connected, "together")
    assert sorted(entry.to_version for entry in entries) == [1, 2, 3, 4, 5]
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    # All were decided before the first was written: it alone counts, the others are told so.
    assert [entry.effective for entry in entries] == [True, False, False, False, False]
    assert [entry.to_version for entry in history.champion_moves(entries)] == [1]


def test_a_move_of_an_alias_reaches_the_receiver_signed(connected: Any, tmp_path: Path) -> None:
    told = tmp_path / "told"
    write = f"import sys; open({str(told)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    command = [sys.executable, "-c", write, "{name}", "{alias}", "{version}"]
    with webhooks.Receiver(secret=SECRET, commands={"model_version_alias.created": command}) as receiver:
        webhooks.add("labels", url=receiver.url, events=["model_version_alias.created"], secret=SECRET)
        connected.create_registered_model("told")
        version = connected.create_model_version("told", "s3://artifacts/somewhere")
        connected.set_registered_model_alias("told", "champion", version.version)
        deadline = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < deadline, "no delivery came"
            time.sleep(0.1)
    assert told.read_text() == f"told champion {version.version}\n"
    assert [code for _, code in receiver.done] == [0]
    assert [each.name for each in webhooks.registered()] == ["labels"]
    assert webhooks.remove("labels")
    assert webhooks.registered() == []


def test_compose_starts_what_the_test_starts() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    script = (FOLDER / "start.sh").read_text()
    environment = services["mlflow"]["environment"]
    for name in ("ISTHMUS_DATABASE", "ISTHMUS_ARTIFACTS", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        assert name in environment
        assert f"${{{name}:?" in script
    # Nothing but this machine reaches it without a proxy, and no secret stands in a file of the repository.
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    example = (FOLDER / "example.env").read_text()
    wanted = {line.partition("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert all(
        line.endswith("=") for line in example.splitlines() if "=" in line and not line.startswith("#")
    )
    assert {name for name in wanted if f"${{{name}" in (FOLDER / "compose.yaml").read_text()} == wanted
    dockerfile = (ROOT / services["mlflow"]["build"]["dockerfile"]).read_text().replace("\\\n", " ")
    for line in dockerfile.splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            *sources, _ = [part for part in line.split()[1:] if not part.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line
    assert shutil.which("sh")
