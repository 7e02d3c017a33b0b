"""Two processes that torchrun starts: the same model as one process with the whole batch, one record, one end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isthmus.training.distributed import joined
from isthmus.training.errors import TrainingError

RECIPE: dict[str, Any] = {
    "name": "shared",
    "data": {"source": "imagefolder", "name": "colours"},
    # No BatchNorm: its statistics are of the batch that a process sees.
    "model": {"name": "test_vit", "input_size": [3, 64, 64], "crop_pct": 1.0},
    "train": {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": "sgd",
        "lr": 0.05,
        "warmup_epochs": 0,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "ema_decay": 0.9,
        "clip_grad": 1.0,
        "augment": {"enabled": False},
    },
}
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]


def command(recipe: Path, home: Path, root: Path, *more: str) -> list[str]:
    return [
        "isthmus.cli.main",
        "train",
        "--config",
        str(recipe),
        "--home",
        str(home),
        "--data",
        str(root),
        *more,
    ]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RECIPE))
    return path


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(arguments: list[str]) -> str:
    process = start(arguments)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def weights(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / "checkpoints" / "shared" / "latest" / "model.safetensors")


def test_two_processes_are_one_with_the_whole_batch_and_go_on_after_sigterm(
    recipe: Path, images: Path, tmp_path: Path
) -> None:
    one = command(recipe, tmp_path / "one", images, "--batch-size", "16")
    finished([sys.executable, "-m", *one])
    two = [*LAUNCHER, *command(recipe, tmp_path / "two", images, "--set", "train.save_every=1")]
    interrupted = start(two)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "two").glob("checkpoints/shared/.unfinished-*/state-*.pt")):
        assert interrupted.poll() is None, interrupted.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGTERM)
    interrupted.communicate(timeout=120)
    output = finished(two)
    # One of the two speaks.
    assert output.count("continuing after epoch") == 1
    assert output.count("2 processes, CPU") == 1
    assert len(list((tmp_path / "two" / "checkpoints" / "shared").glob("2*"))) == 1
    reference, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert set(reference) == set(found)
    for name, value in reference.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert "up to date" in finished(two)


def test_an_incomplete_environment_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(
            TrainingError, match=r"WORLD_SIZE is 2 but RANK, .* start distributed training with torchrun"
        ),
        joined("cpu"),
    ):
        pass
