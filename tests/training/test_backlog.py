"""A real tracking server that goes away while a model is trained, and comes back."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.lineage import tracking
from isthmus.training import train as module
from isthmus.training.backlog import Backlog
from isthmus.training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError


class Server:
    """`mlflow server` over one SQLite file, which can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def stop(self) -> None:
        if self.process is not None:
            # The whole session: uvicorn's workers and MLflow's job runners.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.stop()


def test_training_goes_on_while_the_server_is_away_and_the_record_catches_up(
    server: Server,
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from isthmus.training.tracking import Run

    epoch, seen, back = Run.epoch, [], threading.Thread(target=server.start)

    def interrupted(self: Any, number: int, metrics: Any) -> None:
        if number == 1:
            server.stop()
        epoch(self, number, metrics)
        seen.append((number, len(self.backlog.waiting)))
        if number == 3:
            back.start()

    monkeypatch.setattr(Run, "epoch", interrupted)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    # Then MLflow's own monitor would sample as well.
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    with caplog.at_level(logging.WARNING, logger="isthmus"):
        result = module.train(
            name="away",
            data=DataConfig(root=images, name="colours"),
            model=ModelConfig(name="test_resnet", input_size=(3, 32, 32)),
            train=TrainConfig(
                epochs=4, batch_size=16, workers=0, threads=1, augment=AugmentConfig(enabled=False)
            ),
            home=tmp_path / "home",
            recipe={"name": "away"},
            tracking_uri=server.uri,
        )
    back.join()
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # Once of the epochs, once of the machine's metrics.
    assert caplog.text.count("does not answer; training goes on") == 2
    client = tracking.connect(tmp_path / "home", server.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("away").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted(each.step for each in history) == [0, 1, 2, 3]
    # Each at the time at which it happened, not at the time of the catching up.
    assert len({each.timestamp for each in history}) == 4
    samples = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert sorted(each.step for each in samples) == list(range(len(samples)))
    assert min(each.timestamp for each in samples) < history[1].timestamp < samples[-1].timestamp
    names = {each.path for each in client.list_artifacts(run.info.run_id, "pictures")}
    assert names >= {"pictures/confusion_matrix.png", "pictures/train_batch.png"}
    assert run.outputs.model_outputs
    assert result.checkpoint.is_dir()


def test_a_server_that_stays_away_is_one_line_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_TRACKING_PATIENCE_S", "1.5")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    import requests

    backlog = Backlog(tracking_uri=uri)
    backlog.add(lambda: requests.get(uri, timeout=1))
    with pytest.raises(
        TrainingError, match=r"did not answer for 2 s; what was trained is kept, and the same command"
    ):
        backlog.settled(lambda: None)
    assert len(backlog.waiting) == 1
    with pytest.raises(ZeroDivisionError):
        Backlog(tracking_uri=uri).settled(lambda: 1 / 0)
