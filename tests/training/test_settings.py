"""Numbers and names of the train section that cannot work are refused with what would."""

from __future__ import annotations

import pytest
import torch

from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.errors import TrainingError
from isthmus.training.settings import (
    check_settings,
    create_optimizer,
    create_scheduler,
    full_float32,
    resolve_device,
)


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (TrainConfig(epochs=0), "train.epochs is 0; it must be at least 1"),
        (TrainConfig(batch_size=1), "train.batch_size is 1; it must be at least 2"),
        (TrainConfig(lr=0.0), "train.lr is 0.0; it must be above 0"),
        (TrainConfig(scheduler="cosin"), "train.scheduler 'cosin' is unknown; allowed: cosine, "),
        (TrainConfig(ema_decay=1.0), "train.ema_decay is 1.0; it must lie between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(train: TrainConfig, text: str) -> None:
    with pytest.raises(TrainingError) as caught:
        check_settings(ModelConfig(name="resnet18"), train)
    assert text in str(caught.value)


def test_an_unknown_optimizer_gets_the_nearest_names() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"train.optimizer 'adamv' is unknown to timm; nearest: .*adamw"):
        create_optimizer(model, TrainConfig(optimizer="adamv"))
    with pytest.raises(TrainingError, match=r"cannot build the optimizer adamw with train.optimizer_args"):
        create_optimizer(model, TrainConfig(optimizer_args={"no_such": 1}))


def test_every_schedule_starts_at_warmup_and_reaches_the_peak() -> None:
    train = TrainConfig(epochs=4, lr=0.1, warmup_epochs=2, warmup_lr=0.001, min_lr=0.0)
    optimizer = create_optimizer(torch.nn.Linear(2, 2), train)
    scheduler, epochs = create_scheduler(optimizer, train, updates_per_epoch=10)
    assert epochs == 4
    seen = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 41):
        scheduler.step_update(update)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen[0] == pytest.approx(0.001)
    assert seen[20] == pytest.approx(
        0.05
    )  # timm's cosine counts warm-up as part of itself: half-way at half time
    assert seen[-1] == pytest.approx(0.0, abs=1e-6)
    assert max(seen) > 0.085


def test_one_epoch_needs_no_warmup() -> None:
    train = TrainConfig(epochs=1, lr=0.1, warmup_epochs=3)
    optimizer = create_optimizer(torch.nn.Linear(2, 2), train)
    create_scheduler(optimizer, train, updates_per_epoch=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(TrainingError, match=r"train.device 'gpu' is unknown; allowed: auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(TrainingError, match=r"train.device 'cuda:63' is not there: torch sees"):
        resolve_device("cuda:63")


def test_the_final_test_is_in_full_float32_and_training_goes_back_to_tf32() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with full_float32():
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
