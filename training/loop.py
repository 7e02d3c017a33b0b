"""One epoch of training, and one pass of evaluation, around timm's task and evaluator."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.training.distributed import World
from isthmus.training.errors import TrainingError
from isthmus.training.randomness import seed_for

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(kw_only=True)
class Trainer:
    """Everything that one training step needs; built once a run."""

    task: TrainingTask
    loader: Any
    labels: torch.Tensor
    """int64 [N], the class of each image number; float32 [N, C] for multi-label heads. On `device`, where the loader
    puts the numbers: taken to the CPU, each step would wait for the one before."""
    optimizer: torch.optim.Optimizer
    scheduler: Any
    """timm's, stepped here once an update; None where it steps once an epoch, or not at all."""
    scaler: Any
    """timm.utils.NativeScaler for fp16, or None."""
    mixup: Any
    """timm.data.Mixup or None."""
    device: torch.device
    precision: str
    channels_last: bool
    accumulate: int
    clip_grad: float | None
    clip_mode: str
    skip_nan: bool
    seed: int
    world: World
    name_of: Callable[[int], Path]
    """The file of an image number."""
    after_step: Callable[[float], None]
    """Called after each step with the last known loss: progress on the terminal."""
    pause: Callable[[EpochPosition, Callable[[], None]], None]
    """Called after each update with where the epoch is, and with what checks the loss of the step just made: a
    chance to save and to stop."""

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.loader) // self.accumulate)

    def epoch(self, number: int, *, within: dict[str, Any] | None = None) -> dict[str, float]:
        """One pass over the training split.

        `within` is where an interrupted epoch was: its batches are read again and left out, so that loader and
        augmentation are where they were.

        Returns train_loss (mean over the images), lr (of the last step), images_per_second, and `skipped` where
        steps were left out. Raises TrainingError with the step, the learning rate and the files when the loss is
        not finite.
        """
        import torch

        self.task.train()
        here = EpochPosition(number=number, loss_sum=torch.zeros((), device=self.device))
        if within is not None:
            here.resume(within, rank=self.world.rank)
        first, started = here.batches, time.perf_counter()
        # A loss is looked at one step late, when the device has it anyway: no step waits for it.
        pending: _Step | None = None
        seed = functools.partial(seed_for, seed=self.seed, epoch=number, rank=self.world.rank)
        seed("epoch")
        for batch, (images, numbers) in enumerate(self.loader):
            if batch < first:
                seed("fetch", batch=batch)
                continue
            seed("step", batch=batch)
            step = self._step(here, batch, images, numbers)
            if pending is not None:
                self._check(pending)
            pending = step
            here.batches = batch + 1
            if step.updates and here.batches < len(self.loader):
                self.pause(here, functools.partial(self._check, step))
            seed("fetch", batch=batch)
        if pending is not None:
            self._check(pending)
        metrics = here.metrics(lr=self.optimizer.param_groups[0]["lr"] if pending is None else pending.lr)
        metrics["train_loss"] = self.world.mean(metrics["train_loss"])
        seen = here.images_seen - here.images_before
        metrics["images_per_second"] = self.world.size * seen / (time.perf_counter() - started)
        return metrics

    def _step(self, here: EpochPosition, batch: int, images: torch.Tensor, numbers: torch.Tensor) -> _Step:
        update = here.number * self.updates_per_epoch + batch // self.accumulate
        last = (batch + 1) % self.accumulate == 0 or batch + 1 == len(self.loader)
        group = min(self.accumulate, len(self.loader) - batch // self.accumulate * self.accumulate)
        step = _Step(update=update, lr=self.optimizer.param_groups[0]["lr"], numbers=numbers, updates=last)
        step.loss = self.step(images, numbers, update=update, group=group, last=last)
        if self.skip_nan and not math.isfinite(float(step.loss)):
            here.skipped += 1
            step.loss = None
            return step
        here.loss_sum += step.loss * len(numbers)
        here.images_seen += len(numbers)
        return step

    def step(
        self, images: torch.Tensor, numbers: torch.Tensor, *, update: int, group: int = 1, last: bool = True
    ) -> torch.Tensor:
        """Forward and backward; after the `last` of a `group` of batches also optimizer, moving average and
        schedule. Returns the loss, detached."""
        import torch

        targets = self.labels[numbers]
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = getattr(torch, PRECISIONS.get(self.precision, "bfloat16"))
        # DDP adds gradients up over the processes in the last backward pass of a group only.
        with nullcontext() if last else self.task.no_sync():
            with torch.autocast(self.device.type, dtype=dtype, enabled=self.precision in PRECISIONS):
                loss: torch.Tensor = self.task(images, targets)["loss"]
            if self.skip_nan and self.world.most(int(not math.isfinite(float(loss.detach())))):
                # Nothing of this group reaches the weights, on any process.
                self.optimizer.zero_grad()
                return torch.full_like(loss.detach(), math.nan)
            self._backward(loss / group, last=last)
        if last:
            self.optimizer.zero_grad()
            self.task.update_ema(step=update)
            if self.scheduler is not None:
                self.scheduler.step_update(update + 1)
        return loss.detach()

    def _backward(self, loss: torch.Tensor, *, last: bool) -> None:
        from timm.utils import dispatch_clip_grad

        parameters = None
        if self.clip_grad is not None:
            # Adaptive clipping leaves the classifier out, as its authors do.
            parameters = self.task.get_clip_parameters(exclude_head=self.clip_mode == "agc")
        if self.scaler is not None:
            self.scaler(
                loss,
                self.optimizer,
                clip_grad=self.clip_grad,
                clip_mode=self.clip_mode,
                parameters=parameters,
                need_update=last,
            )
            return
        loss.backward()
        if last:
            if self.clip_grad is not None:
                dispatch_clip_grad(parameters, self.clip_grad, mode=self.clip_mode)
            self.optimizer.step()

    def _check(self, step: _Step) -> None:
        if step.loss is None:
            self.after_step(math.nan)
            return
        loss = float(step.loss)
        if not math.isfinite(loss):
            files = [str(self.name_of(number)) for number in step.numbers.tolist()]
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            raise TrainingError(
                f"the training loss became {loss} at step {step.update} (lr {step.lr:.3g}) on the batch "
                f"{', '.join(files[:3])}{more}; look at these images, or lower train.lr, lengthen "
                f"train.warmup_epochs, set train.clip_grad, or leave such steps out with train.on_nan: skip"
            )
        self.after_step(loss)


@dataclass(kw_only=True)
class _Step:
    """What has to be said of a step whose loss turns out not to be a number."""

    update: int
    lr: float
    numbers: torch.Tensor
    updates: bool
    """Whether the optimizer moved after it."""
    loss: torch.Tensor | None = None
    """None of a step that was left out."""


@dataclass(kw_only=True)
class EpochPosition:
    """Where an epoch is."""

    number: int
    loss_sum: torch.Tensor
    batches: int = 0
    images_seen: int = 0
    skipped: int = 0
    images_before: int = field(default=0, repr=False)
    """Of images_seen, those of earlier attempts."""

    def state(self) -> dict[str, Any]:
        """What this process has to keep to continue from here."""
        return {
            "batches": self.batches,
            "sums": (self.loss_sum.cpu(), self.images_seen, self.skipped),
        }

    def resume(self, within: dict[str, Any], *, rank: int) -> None:
        """Continue from what `state` returned on this rank."""
        loss_sum, self.images_seen, self.skipped = within["sums"][rank]
        self.loss_sum = loss_sum.to(self.loss_sum.device)
        self.batches, self.images_before = within["batches"], self.images_seen

    def metrics(self, *, lr: float) -> dict[str, float]:
        """Of the whole epoch on this process."""
        skipped = {"skipped": float(self.skipped)} if self.skipped else {}
        loss = float(self.loss_sum) / self.images_seen if self.images_seen else math.nan
        return {"train_loss": loss, "lr": lr, **skipped}


def evaluate(
    task: TrainingTask,
    model: torch.nn.Module,
    loader: Any,
    labels: torch.Tensor,
    device: torch.device,
    *,
    world: World = World(),  # noqa: B008 - frozen
    answers: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> dict[str, float]:
    """`model` in fp32 and eval mode on a split, over all processes: {"loss", and "top1" or "map" in 0..1}.

    `answers` is given the image numbers (int64 [B]) and logits (float32 [B, C]) of each batch of this process.
    """
    import torch
    from timm.task.evaluator import evaluation_sample_limit

    was_training = model.training
    model.eval()
    # What timm pads the last process's share with does not count.
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    with torch.inference_mode():
        for images, numbers in loader:
            logits = model(images.to(device, non_blocking=True))
            evaluator.update(logits, labels[numbers].to(device, non_blocking=True))
            if answers is not None:
                answers(numbers.cpu(), logits.float().cpu())
    model.train(was_training)
    summary = evaluator.compute(distributed=world.is_many)
    metric = evaluator.default_metric
    return {"loss": summary["loss"], metric: summary[metric] / 100}
