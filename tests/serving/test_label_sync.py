"""Labels that move on a running server and in models.config, and versions that are loaded only when they are signed."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import text_format

from isthmus.lineage import signing
from isthmus.lineage.config import SigningConfig
from isthmus.serving import label_sync
from isthmus.serving.client import GrpcClient
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.label_sync import LabelSync, WantedLabels
from isthmus.serving.process import ServerProcess

X = np.array([1.0, 2.0], np.float32)

CONFIG = """
model_config_list {{
  config {{
    name: "half" base_path: "{base}" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 }} }}
    version_labels {{ key: "stable" value: 1 }}
  }}
  config {{ name: "other" base_path: "{other}" model_platform: "tensorflow" }}
}}
"""


@pytest.fixture(scope="module")
def folder(models_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """half/1 to half/3 and other/1; all but half/3 signed with signing.pem; models.config."""
    folder = tmp_path_factory.mktemp("labels")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (folder / "signing.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "signing.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for number in ("1", "2", "3"):
        shutil.copytree(models_root / "half_plus_n" / number, folder / "half" / number)
    shutil.copytree(models_root / "half_plus_n" / "1", folder / "other" / "1")
    for signed in ("half/1", "half/2", "other/1"):
        signing.sign(folder / signed, SigningConfig(key=folder / "signing.pem"))
    (folder / "models.config").write_text(CONFIG.format(base=folder / "half", other=folder / "other"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    flags = [
        f"--model_config_file={folder / 'models.config'}",
        f"--verification_key={folder / 'signing.pub'}",
        "--allow_version_labels_for_unavailable_models=true",
        "--file_system_poll_wait_seconds=0.1",
    ]
    with ServerProcess("half", folder / "half", flags=flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[GrpcClient]:
    with GrpcClient(port=server.grpc_port) as client:
        client.wait_until_available("half")
        client.wait_until_available("other")
        yield client


@pytest.fixture
def sync(server: ServerProcess, folder: Path) -> LabelSync:
    address = f"127.0.0.1:{server.grpc_port}"
    return LabelSync(servers=(address,), models_config=folder / "models.config", timeout_s=60)


def wanted(**labels: int) -> WantedLabels:
    return WantedLabels(name="half", labels=labels, base_path="/nowhere")


def said(client: GrpcClient) -> dict[str, int]:
    return label_sync.labels_on(client, "half")


def test_labels_follow_without_one_failed_request_and_other_models_stay(
    client: GrpcClient, sync: LabelSync, folder: Path
) -> None:
    answers: list[float] = []
    failures: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                answers.append(float(client.predict("half", {"x": X}, label="stable")["y"][0]))
            except RequestError as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        everybody = (*sync.servers, str(sync.models_config))
        assert sync.tell(wanted(stable=1, canary=2)) == dict.fromkeys(everybody)
        assert said(client) == {"stable": 1, "canary": 2}
        assert sync.tell(wanted(stable=2)) == dict.fromkeys(everybody)
    finally:
        done.set()
        asking.join()
    assert failures == []
    assert set(answers) >= {1.5}
    assert said(client) == {"stable": 2}
    assert float(client.predict("half", {"x": X}, label="stable")["y"][0]) == 2.5
    assert client.predict("other", {"x": X})["y"][0] == 1.5
    config = label_sync.read_config(folder / "models.config")
    half, other = config.model_config_list.config
    assert (half.base_path, dict(half.version_labels)) == (str(folder / "half"), {"stable": 2})
    assert list(half.model_version_policy.specific.versions) == [2]
    assert other.name == "other"
    assert sync.tell(wanted(stable=2)) == dict.fromkeys(everybody), "a second time changes nothing"
    # And back, as a rollback has it: version 1 is loaded again.
    assert sync.tell(wanted(stable=1, canary=2)) == dict.fromkeys(everybody)
    assert said(client) == {"stable": 1, "canary": 2}


def test_a_version_that_is_not_signed_is_never_loaded_and_the_labels_stay(
    client: GrpcClient, sync: LabelSync, folder: Path
) -> None:
    before = said(client)
    outcome = sync.tell(wanted(stable=3))
    problem = outcome[sync.servers[0]]
    assert problem is not None
    assert f"version 3 is END there: not loaded: {folder / 'half/3'} is not signed" in problem
    assert said(client) == before
    # The file says what is right; the server is the one that has not followed.
    assert outcome[str(sync.models_config)] is None
    assert sync.tell(wanted(stable=1, canary=2)) == dict.fromkeys(outcome)


def test_a_server_that_is_not_there_is_said_and_the_others_are_told(
    client: GrpcClient, sync: LabelSync, folder: Path
) -> None:
    both = LabelSync(servers=("127.0.0.1:1", *sync.servers), models_config=folder / "models.config")
    outcome = both.tell(wanted(stable=2))
    assert "UNAVAILABLE" in str(outcome["127.0.0.1:1"])
    assert outcome[sync.servers[0]] is None
    assert said(client) == {"stable": 2}


def test_without_models_config_somebody_must_say_that_nothing_is_lost(
    client: GrpcClient, sync: LabelSync
) -> None:
    with pytest.raises(
        ServingError, match=r"replaces everything .* give --models-config, .* or --only-model"
    ):
        LabelSync(servers=sync.servers).tell(wanted(stable=1))
    with pytest.raises(ServingError, match="no champion of half was ever pushed"):
        sync.tell(wanted())
    assert client.status("other")[0].state == "AVAILABLE"


def test_merging_is_a_function_of_values(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    assert label_sync.read_config(file).model_config_list.config == []
    file.write_text(
        CONFIG.format(base="/models/half", other="/models/other").replace('"stable" value', '"beta" value')
    )
    config = label_sync.read_config(file)
    changed = label_sync.merged(config, wanted(stable=5), labels={"stable": 4}, keep=[3])
    half, other = changed.model_config_list.config
    assert dict(half.version_labels) == {"beta": 1, "stable": 4}
    assert list(half.model_version_policy.specific.versions) == [1, 3, 4, 5]
    assert half.base_path == "/models/half"
    assert text_format.MessageToString(other) == text_format.MessageToString(
        config.model_config_list.config[1]
    )
    assert len(config.model_config_list.config[0].version_labels) == 1, "the original is as it was"
    new = label_sync.merged(
        config, WantedLabels(name="new", labels={"stable": 1}, base_path="/models/new"), labels={"stable": 1}
    )
    assert [entry.name for entry in new.model_config_list.config] == ["half", "other", "new"]
    with pytest.raises(ServingError, match="new was never pushed"):
        label_sync.merged(config, WantedLabels(name="new", labels={}, base_path=None), labels={})
    file.write_text("custom_model_config { }")
    with pytest.raises(ServingError, match="holds a custom_model_config"):
        label_sync.read_config(file)


def test_a_key_that_verifies_nothing_ends_the_start_at_once(folder: Path) -> None:
    flags = [f"--verification_key={folder / 'models.config'}"]
    with (
        pytest.raises(ServingError, match=r"--verification_key: .*models.config verifies nothing"),
        ServerProcess("half", folder / "half", flags=flags),
    ):
        pass
