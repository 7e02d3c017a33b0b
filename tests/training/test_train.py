"""A real, small run: images in, a checkpoint out that timm loads; then again, interrupted, with bad input."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from isthmus.lineage.files import sha256_file
from isthmus.training import loop
from isthmus.training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError
from isthmus.training.train import TrainResult, train

NAME = "colours"
MODEL = {"name": "test_resnet", "input_size": (3, 32, 32), "crop_pct": 1.0}
TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "workers": 0,
    "threads": 1,
    "lr": 3e-3,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 images."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for name, colour in {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}.items():
        (root / name).mkdir()
        for index in range(20):
            pixels = (noise.integers(-40, 40, (16, 16, 3)) + np.array(colour)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03d}.png")
    return root


def run(root: Path, home: Path, *, force: bool = False, **changes: Any) -> TrainResult:
    return train(
        name=NAME,
        data=DataConfig(root=root, name="colours"),
        model=ModelConfig(**MODEL | changes.pop("model", {})),
        train=TrainConfig(**{"augment": AugmentConfig(hflip=0.0, scale=(0.8, 1.0))} | TRAIN | changes),
        home=home,
        recipe={"name": NAME, "description": "a test"},
        force=force,
    )


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """(home, result) of one whole run."""
    home = tmp_path_factory.mktemp("home")
    return home, run(root, home)


def record(result: TrainResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.checkpoint / "checkpoint.json").read_text())
    return content


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.checkpoint / "model.safetensors")


def test_the_checkpoint_says_where_it_comes_from(trained: tuple[Path, TrainResult]) -> None:
    home, result = trained
    content = record(result)
    assert content["schema_version"] == 1
    assert content["name"] == NAME
    assert content["weights_sha256"] == sha256_file(result.checkpoint / "model.safetensors")
    assert content["weights"] in {"model", "ema"}
    assert content["model"] == {
        "name": "test_resnet",
        "args": {},
        "pretrained_tag": None,
        "num_classes": 3,
        "input_size": [3, 32, 32],
        "head": "single_label",
        "labels": ["blue", "green", "red"],
    }
    assert content["preprocessing"]["crop_pct"] == 1.0
    dataset = json.loads((home / "data" / "colours" / "dataset.json").read_text())
    assert content["dataset"]["digest"] == dataset["digest"]
    assert content["dataset"]["root"] == str(home / "data" / "colours")
    assert sum(content["dataset"]["splits"].values()) == 60
    assert content["recipe"]["description"] == "a test"
    assert content["recipe"]["train"]["batch_size"] == 16
    assert {"commit", "dirty", "remote"} <= set(content["source"])
    assert content["versions"]["timm"] == timm.__version__
    assert 0 <= content["metrics"]["test_top1"] <= 1
    assert content["metrics"] == result.metrics
    assert (home / "checkpoints" / NAME / "latest").resolve() == result.checkpoint.resolve()
    assert sorted(path.name for path in (home / "checkpoints" / NAME).iterdir()) == [
        result.checkpoint.name,
        "latest",
    ]


def test_timm_loads_it_back_with_the_same_logits(trained: tuple[Path, TrainResult]) -> None:
    home, result = trained
    content = record(result)
    from_folder = timm.create_model(f"local-dir:{result.checkpoint}", pretrained=True).eval()
    from_record = timm.create_model(
        content["model"]["name"], num_classes=3, **content["model"]["args"]
    ).eval()
    from_record.load_state_dict(weights(result))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=from_folder))
    files = sorted((home / "data" / "colours" / "test").rglob("*.png"))
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
    assert images.shape[1:] == (3, 32, 32)
    with torch.inference_mode():
        logits = from_folder(images)
        torch.testing.assert_close(logits, from_record(images), rtol=0, atol=0)
    labels = torch.tensor([content["model"]["labels"].index(path.parent.name) for path in files])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(content["metrics"]["test_top1"])
    assert from_folder.pretrained_cfg["label_names"] == ["blue", "green", "red"]


def test_mlflow_has_the_run_its_metrics_and_the_model(trained: tuple[Path, TrainResult]) -> None:
    from isthmus.lineage import tracking

    home, result = trained
    content = record(result)
    client = tracking.connect(home)
    run = client.get_run(content["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["model.name"] == "test_resnet"
    assert run.data.tags["isthmus.weights_sha256"] == content["weights_sha256"]
    history = client.get_metric_history(run.info.run_id, "val_top1")
    assert [point.step for point in history if point.model_id is None][:2] == [0, 1]
    machine = ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    for metric in ("train_loss", "val_loss", "lr", "images_per_second", "test_top1", *machine):
        assert metric in run.data.metrics
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "colours"
    assert json.loads(used.dataset.profile)["digest"] == content["dataset"]["digest"]
    model = client.get_logged_model(content["mlflow"]["model_id"])
    assert model.tags["isthmus.weights_sha256"] == content["weights_sha256"]
    import mlflow

    loaded = mlflow.pytorch.load_model(model.model_uri)
    images = torch.randn(2, 3, 32, 32)
    from_folder = timm.create_model(f"local-dir:{result.checkpoint}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), from_folder(images), rtol=0, atol=0)


def test_a_second_run_does_nothing_and_says_so(
    trained: tuple[Path, TrainResult], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home, result = trained
    with caplog.at_level(logging.INFO, logger="isthmus"):
        again = run(root, home)
    assert again.up_to_date
    assert again.checkpoint == result.checkpoint
    assert again.metrics == result.metrics
    assert "train colours: up to date, test_top1" in caplog.text


def test_a_change_of_the_recipe_trains_again_and_going_back_does_not(
    trained: tuple[Path, TrainResult], root: Path
) -> None:
    home, result = trained
    other = run(root, home, epochs=1, ema_decay=None, channels_last=True, clip_grad=1.0)
    assert not other.up_to_date
    assert (home / "checkpoints" / NAME / "latest").resolve() == other.checkpoint.resolve()
    back = run(root, home)
    assert back.up_to_date
    assert (home / "checkpoints" / NAME / "latest").resolve() == result.checkpoint.resolve()


def test_the_same_seed_gives_the_same_weights_and_force_trains_again(
    trained: tuple[Path, TrainResult], root: Path
) -> None:
    home, result = trained
    again = run(root, home, force=True)
    assert not again.up_to_date
    assert again.checkpoint != result.checkpoint
    assert record(again)["weights_sha256"] == record(result)["weights_sha256"]


def test_damaged_weights_are_not_up_to_date(trained: tuple[Path, TrainResult], root: Path) -> None:
    home, _ = trained
    result = run(root, home, epochs=1)
    with open(result.checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")
    assert not run(root, home, epochs=1).up_to_date


def test_mixup_and_random_erasing_train(root: Path, trained: tuple[Path, TrainResult]) -> None:
    home, _ = trained
    result = train(
        name="mixed",
        data=DataConfig(root=root, name="colours"),
        model=ModelConfig(**MODEL),  # type: ignore[arg-type]
        train=TrainConfig(
            **TRAIN | {"epochs": 1},
            smoothing=0.1,
            precision="bf16",
            augment=AugmentConfig(mixup=0.2, cutmix=0.5, random_erasing=0.3, auto_augment="rand-m5-n1"),
        ),
        home=home,
        recipe={},
    )
    assert result.metrics["epochs"] == 1


CHILD = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_train
    from isthmus.training.errors import TrainingError
    try:
        test_train.run(Path({root!r}), Path({home!r}), epochs={epochs})
    except TrainingError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""
EPOCHS = 12


@pytest.fixture
def child(root: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in another process, past its first epoch and before its last; its home is tmp_path."""
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root), home=str(tmp_path), epochs=EPOCHS)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/colours/.unfinished-*/state-*.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


def test_after_kill_9_the_same_command_continues_to_the_same_weights(
    child: subprocess.Popen[str], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # What a kill in the middle of writing leaves is not looked at.
    (unfinished,) = (tmp_path / "checkpoints" / NAME).glob(".unfinished-*")
    (unfinished / "state.new").write_bytes(b"half a file")
    (tmp_path / "checkpoints" / NAME / ".staging-dead").mkdir()
    with caplog.at_level(logging.INFO, logger="isthmus"):
        result = run(root, tmp_path, epochs=EPOCHS)
    assert "train colours: continuing after epoch" in caplog.text
    assert result.metrics["epochs"] == EPOCHS
    assert len(record(result)["history"]) == EPOCHS
    assert sorted(path.name for path in (tmp_path / "checkpoints" / NAME).iterdir()) == [
        result.checkpoint.name,
        "latest",
    ]
    never_interrupted = run(root, tmp_path, epochs=EPOCHS, force=True)
    assert record(never_interrupted)["weights_sha256"] == record(result)["weights_sha256"]
    from isthmus.lineage import tracking

    client = tracking.connect(tmp_path)
    run_id = client.get_run(record(result)["mlflow"]["run_id"]).data.tags["isthmus.resumes"]
    assert client.get_run(run_id).info.status == "KILLED"


def test_sigterm_saves_inside_the_epoch_and_ends_in_one_line_with_its_own_exit_code(
    child: subprocess.Popen[str], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 75
    last = stderr.strip().splitlines()[-1]
    said = re.fullmatch(
        r"stopped by SIGTERM (after (?:step (\d) of 2 in )?epoch (\d+) of 12); the same command continues from there",
        last,
    )
    assert said, last
    with caplog.at_level(logging.INFO, logger="isthmus"):
        result = run(root, tmp_path, epochs=EPOCHS)
    where = re.search(r"continuing after epoch (\d+) of 12(?: and step (\d) of the next)?", caplog.text)
    assert where
    step, epoch = said[2], int(said[3])
    assert (int(where[1]), where[2]) == ((epoch - 1, step) if step else (epoch, None))
    never_interrupted = run(root, tmp_path, epochs=EPOCHS, force=True)
    assert record(never_interrupted)["weights_sha256"] == record(result)["weights_sha256"]


class Killed(BaseException):
    """Stands for the end of the process: nothing in training catches it."""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": {"args": {"drop_rate": 0.2, "drop_path_rate": 0.1}}}, id="dropout"),
        pytest.param(
            {"workers": 2, "accumulate": 2, "augment": {"random_erasing": 0.5}}, id="workers-accumulate"
        ),
        pytest.param({"augment": {"mixup": 0.4, "cutmix": 0.4}, "optimizer": "adabelief"}, id="mixup"),
    ],
)
def test_a_run_that_died_inside_an_epoch_continues_to_the_same_bits(
    changes: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    from isthmus.training.unfinished import Unfinished

    changes = {"batch_size": 8, "save_every": 2, "ema_decay": 0.9, **changes}
    changes["augment"] = AugmentConfig(hflip=0.5, color_jitter=0.3, **changes.get("augment", {}))
    whole = run(root, tmp_path, **changes)
    before = record(whole)
    save, saved = Unfinished.save, []

    def die(self: Any, *arguments: Any) -> None:
        save(self, *arguments)
        saved.append(arguments[-1].position)
        if len(saved) == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unfinished, "save", die)
        with pytest.raises(Killed):
            run(root, tmp_path, force=True, **changes)
    assert saved[-1][1] > 0, "the run did not die inside an epoch"
    shutil.rmtree(whole.checkpoint)
    result = run(root, tmp_path, **changes)
    assert record(result)["weights_sha256"] == before["weights_sha256"]
    assert [row["train_loss"] for row in record(result)["history"]] == [
        row["train_loss"] for row in before["history"]
    ]


def test_a_damaged_state_starts_again(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from isthmus.training import train as module

    seen: list[Path] = []
    original = module.Unfinished.read

    def damage(self: Any) -> Any:
        self.folder.mkdir(parents=True)
        seen.append(self.folder / "state-00001-0000000.pt")
        seen[0].write_bytes(b"no state at all")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Unfinished, "read", damage)
        result = run(root, tmp_path, epochs=1)
    assert f"cannot read {seen[0]}" in caplog.text
    assert result.metrics["epochs"] == 1


def test_an_unknown_model_is_said_before_the_images_are_prepared(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no model 'test_resnot'; nearest: test_resnet"):
        run(root, tmp_path, model={"name": "test_resnot"})
    assert not (tmp_path / "data").exists()


def test_a_loss_that_is_not_a_number_stops_with_step_lr_and_files(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(root, tmp_path, lr=1e30, warmup_epochs=0, optimizer="sgd", epochs=5)
    text = str(caught.value)
    assert "the training loss became nan at step 1 (lr 9.76" in text
    assert "e+29) on the batch " in text
    assert f"{tmp_path / 'data' / 'colours' / 'train'}/" in text
    assert not (tmp_path / "checkpoints" / NAME / "latest").exists()


def test_weights_that_answer_with_nan_are_not_kept(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        TrainingError, match=r"no weights are worth keeping: .* after any of 2 epochs; lower train.lr"
    ):
        run(root, tmp_path, lr=1e30, warmup_epochs=0, optimizer="sgd", epochs=2, on_nan="skip")
    # The model's weights and their moving average, after each of two epochs.
    assert caplog.text.count("they are not kept") == 4
    assert not (tmp_path / "checkpoints" / NAME / "latest").exists()


def test_running_out_of_memory_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(loop.Trainer, "step", step)
    with pytest.raises(
        TrainingError, match=r"out of memory on the CPU with train.batch_size 16 of 3x32x32; try"
    ):
        run(root, tmp_path)
