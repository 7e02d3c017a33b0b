"""One epoch of training, and one pass of evaluation, around timm's task and evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask


@dataclass(kw_only=True)
class Trainer:
    """Everything that one training step needs; built once a run."""

    task: TrainingTask
    loader: Any
    labels: torch.Tensor
    """int64 [N], the class of each image number."""
    optimizer: torch.optim.Optimizer
    scheduler: Any
    mixup: Any
    """timm.data.Mixup or None."""
    device: torch.device
    bf16: bool
    channels_last: bool
    clip_grad: float | None
    name_of: Callable[[int], Path]
    """The file of an image number."""
    after_step: Callable[[float], None]
    """Called after each step with the last known loss: progress, and a chance to stop."""

    def epoch(self, number: int) -> dict[str, float]:
        """One pass over the training split.

        Returns train_loss (mean over the images), lr (of the last step) and images_per_second. Raises
        TrainingError with the step, the learning rate and the files when the loss is not finite.
        """
        import torch

        self.task.train()
        started, images_seen, loss_sum = time.perf_counter(), 0, torch.zeros((), device=self.device)
        updates_per_epoch = len(self.loader)
        # A loss is looked at one step late, when the device has it anyway: no step waits for it.
        pending: _Step | None = None
        for batch, (images, numbers) in enumerate(self.loader):
            update = number * updates_per_epoch + batch
            step = _Step(update=update, lr=self.optimizer.param_groups[0]["lr"], numbers=numbers.cpu())
            step.loss = self.step(images, numbers.cpu(), update=update)
            loss_sum += step.loss * len(numbers)
            images_seen += len(numbers)
            if pending is not None:
                self._check(pending)
            pending = step
        assert pending is not None, "a training loader without a batch"
        self._check(pending)
        return {
            "train_loss": float(loss_sum) / images_seen,
            "lr": pending.lr,
            "images_per_second": images_seen / (time.perf_counter() - started),
        }

    def step(self, images: torch.Tensor, numbers: torch.Tensor, *, update: int) -> torch.Tensor:
        """Forward, backward, optimizer, moving average, schedule. Returns the loss, detached."""
        import torch
        from timm.utils import dispatch_clip_grad

        targets = self.labels[numbers].to(self.device, non_blocking=True)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss: torch.Tensor = self.task(images, targets)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_grad is not None:
            dispatch_clip_grad(self.task.get_clip_parameters(), self.clip_grad)
        self.optimizer.step()
        self.task.update_ema(step=update)
        if self.scheduler is not None:
            self.scheduler.step_update(update + 1)
        return loss.detach()

    def _check(self, step: _Step) -> None:
        assert step.loss is not None
        loss = float(step.loss)
        if not math.isfinite(loss):
            files = [str(self.name_of(int(number))) for number in step.numbers]
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            raise TrainingError(
                f"the training loss became {loss} at step {step.update} (lr {step.lr:.3g}) on the batch "
                f"{', '.join(files[:3])}{more}; look at these images, or lower train.lr, lengthen "
                f"train.warmup_epochs, set train.clip_grad"
            )
        self.after_step(loss)


@dataclass(kw_only=True)
class _Step:
    """What has to be said of a step whose loss turns out not to be a number."""

    update: int
    lr: float
    numbers: torch.Tensor
    loss: torch.Tensor | None = None


def evaluate(
    task: TrainingTask, model: torch.nn.Module, loader: Any, labels: torch.Tensor, device: torch.device
) -> dict[str, float]:
    """Loss and accuracy of `model` in fp32 and eval mode: {"loss", "top1" in 0..1}."""
    import torch

    was_training = model.training
    model.eval()
    evaluator = task.create_evaluator()
    with torch.inference_mode():
        for images, numbers in loader:
            logits = model(images.to(device, non_blocking=True))
            evaluator.update(logits, labels[numbers].to(device, non_blocking=True))
    model.train(was_training)
    summary = evaluator.compute()
    return {"loss": summary["loss"], "top1": summary["top1"] / 100}
