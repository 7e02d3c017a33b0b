"""A model_config_file: where it says that models lie, and, polled, which texts change what is served."""

import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from isthmus.serving import model_config
from isthmus.serving.client import GrpcClient
from isthmus.serving.errors import RequestError
from isthmus.serving.process import ServerProcess
from isthmus.serving.status import Code

LIST = 'model_config_list {{ config {{ name: "half" base_path: "{}" model_platform: "tensorflow" }} }}'


def wait_for_log(server: ServerProcess, text: str) -> None:
    """Until the server has written it."""
    deadline = time.monotonic() + 30
    while text not in server.log_path.read_text():
        assert time.monotonic() < deadline, server.log_path.read_text()[-2000:]
        time.sleep(0.05)


def wait_until(server: ServerProcess, *, served: bool) -> None:
    """Until half is served, or is not."""
    deadline = time.monotonic() + 30
    with GrpcClient(port=server.grpc_port) as client:
        while True:
            try:
                assert client.predict("half", {"x": np.zeros(1, np.float32)})["y"].tolist() == [3.0]
                found = True
            except RequestError as error:
                if "Servable not found for request: Latest(half)" not in error.message:
                    raise
                found = False
            if found == served:
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)


def rewrite(config: Path, text: str) -> None:
    """Replace the file at once, so that no poll sees half of it."""
    config.with_suffix(".new").write_text(text)
    config.with_suffix(".new").rename(config)


def test_an_empty_file_changes_nothing_and_an_empty_list_unloads(models_root: Path, tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text("")
    flags = [f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=0.1"]
    with ServerProcess("unused", tmp_path, flags=flags) as server:
        wait_for_log(server, "Taking no action for empty config.")
        wait_until(server, served=False)
        rewrite(config, LIST.format(models_root / "half_plus_n"))
        wait_until(server, served=True)
        rewrite(config, "# being written\n")
        wait_for_log(
            server,
            "the models stay as they are: FAILED_PRECONDITION: Cannot transition to requested config. "
            "It is only legal to transition from one ModelConfigList to another.",
        )
        wait_until(server, served=True)
        rewrite(config, "model_config_list {}")
        wait_until(server, served=False)


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n"])
def test_a_file_without_a_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.config"
    path.write_text(text)
    assert model_config.read_file(path) is None
    path.write_text(f"{text}\nmodel_config_list {{}}")
    assert model_config.read_file(path) == []


def base_path(text: str) -> Path:
    """The base path of a model that a configuration gives one."""
    entry = f"config {{ name: 'm' base_path: '{text}' model_platform: 'tensorflow' }}"
    message = text_format.Parse(
        f"model_config_list {{ {entry} }}", model_server_config_pb2.ModelServerConfig()
    )
    (model,) = model_config.settings(message)
    return model.base_path


@pytest.mark.parametrize(
    "text", ["/models/m", "file:///models/m", "file:///models/m/", "file://localhost/models/m"]
)
def test_a_path_and_its_uris_are_the_same_folder(text: str) -> None:
    assert base_path(text) == Path("/models/m")


def test_nothing_in_a_uri_is_unquoted() -> None:
    assert base_path("file:///models/a%20b") == Path("/models/a%20b")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("models/m", "Expected model m to have an absolute path or URI; got base_path()=models/m"),
        (
            "file:/models/m",
            "Expected model m to have an absolute path or URI; got base_path()=file:/models/m",
        ),
        ("", "Expected model m to have an absolute path or URI; got base_path()="),
        *(
            (
                uri,
                "model m: the embedded server reads folders of this machine, as /path or file:///path; got "
                f"base_path()={uri}",
            )
            for uri in ("s3://bucket/m", "file://models")
        ),
    ],
)
def test_other_places_are_refused(text: str, error: str) -> None:
    with pytest.raises(RequestError) as caught:
        base_path(text)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, error)
