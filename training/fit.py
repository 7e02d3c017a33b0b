"""A model being fitted: built from a recipe, run epoch by epoch, tested once at the end."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isthmus.training import loaders
from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.data import PreparedData
from isthmus.training.distributed import World
from isthmus.training.errors import TrainingError
from isthmus.training.interrupt import StopRequest, stop_requests
from isthmus.training.loop import EpochPosition, Trainer, evaluate
from isthmus.training.memory import out_of_memory_is_one_line
from isthmus.training.model import create_model, data_config, freeze, head_modules
from isthmus.training.progress import progress_bar
from isthmus.training.randomness import seed_for
from isthmus.training.settings import (
    check_precision,
    create_optimizer,
    create_scheduler,
    full_float32,
    resolve_device,
    use_tensor_cores,
)
from isthmus.training.task import create_mixup, create_task, synchronized, wrap_task
from isthmus.training.unfinished import Progress

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from timm.task import TrainingTask

log = logging.getLogger(__name__)

MOST_EPOCH_LINES = 10


class Fit:
    """Everything a run holds: the task (model, loss, teacher, moving average), its optimizer and schedule, and the
    loaders."""

    def __init__(
        self, *, model: ModelConfig, train: TrainConfig, data: PreparedData, world: World | None = None
    ) -> None:
        """Build it all from the recipe; raises TrainingError for whatever timm or the machine cannot do."""
        import torch
        from timm.utils import NativeScaler

        if train.threads is not None:
            torch.set_num_threads(train.threads)
        self.world = world or World()
        self.config, self.data = train, data
        self.device = resolve_device(train.device, local_rank=self.world.local_rank)
        check_precision(train, self.device)
        use_tensor_cores(self.device)
        seed_for("weights", seed=train.seed)
        net = create_model(model, num_classes=len(data.classes))
        freeze(net, train.freeze)
        self.name = model.name
        self.preprocessing = data_config(net, model)
        # Distillation normalises for the teacher from what the student says of itself.
        net.pretrained_cfg = net.pretrained_cfg | {
            key: tuple(self.preprocessing[key]) for key in ("mean", "std")
        }
        net = synchronized(net, train, device=self.device, world=self.world)
        net.to(self.device)
        if train.channels_last:
            net.to(memory_format=torch.channels_last)
        self.mixup = create_mixup(train, num_classes=len(data.classes), multi_label=data.multi_label)
        self.task: TrainingTask = create_task(
            net, train, mixed=self.mixup is not None, multi_label=data.multi_label, device=self.device
        )
        self.optimizer = create_optimizer(self.task.get_trainable_module(), train, head=head_modules(net))
        self.scaler = NativeScaler(device="cuda") if train.precision == "fp16" else None
        wrap_task(self.task, train, device=self.device, world=self.world)
        self.images = loaders.dataset(data, "train")
        self.train_loader = loaders.train_loader(
            self.images,
            preprocessing=self.preprocessing,
            config=train,
            device=self.device,
            world_size=self.world.size,
        )
        self.updates_per_epoch = -(-len(self.train_loader) // train.accumulate)
        self.scheduler, self.epochs = create_scheduler(
            self.optimizer, train, updates_per_epoch=self.updates_per_epoch
        )
        self.answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.metric: str = self.task.create_evaluator().default_metric

    def describe(self) -> str:
        """One line: the model, its size, where and on what it is trained."""
        import torch

        num_parameters = sum(each.numel() for each in self._weights().parameters())
        size = "x".join(map(str, self.preprocessing["input_size"]))
        where = (
            f"CPU, {torch.get_num_threads()} threads"
            if self.device.type == "cpu"
            else torch.cuda.get_device_name(self.device)
        )
        many = f"{self.world.size} processes, " if self.world.is_many else ""
        return (
            f"{self.name}, {num_parameters / 1e6:.2f} M parameters, {size}, {len(self.images)} images, "
            f"{self.epochs} epochs of {len(self.train_loader)} steps, {many}{where}"
        )

    def run(
        self,
        progress: Progress,
        *,
        save: Callable[[Progress], None],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """Train the epochs that `progress` lacks; after each: validate, `report(epoch, metrics)`, `save`.

        Raises TrainingInterruptedError on SIGTERM and Ctrl-C: what `save` wrote last is where to continue.
        """
        steps = len(self.train_loader)
        self._put_schedule_at(*progress.position)
        val = self._evaluation("val")
        done = progress.epochs_done * steps + progress.position[1]
        bar_of_run = progress_bar(total=self.epochs * steps, initial=done, hidden=not self.world.is_first)
        with bar_of_run as bar, stop_requests() as stop, self._one_line_memory():
            trainer = self._trainer(bar, progress, stop, save)
            for epoch in range(progress.epochs_done, self.epochs):
                started = time.perf_counter()
                bar.set_description(f"epoch {epoch + 1}/{self.epochs}")
                loaders.set_epoch(self.train_loader, seed=self.config.seed, epoch=epoch)
                if self._mixing_ends(epoch):
                    trainer.mixup.mixup_enabled = False
                within, progress.within = progress.within, None
                metrics = trainer.epoch(epoch, within=within) | self._validate(val, epoch, progress)
                if self.scheduler is not None and self.config.step_on_epochs:
                    self.scheduler.step(epoch + 1)
                progress.history.append(metrics)
                progress.epochs_done = epoch + 1
                progress.seconds += time.perf_counter() - started
                report(epoch, metrics)
                save(progress)
                self._log_epoch(epoch, metrics)
                self._stop_if_asked(stop, f"after epoch {epoch + 1} of {self.epochs}")

    def test(self, progress: Progress) -> dict[str, float]:
        """The kept weights on the test split, fp32, timm's evaluation transform; and all metrics of the
        run. What single-label models answered is kept for `pictures`.

        Raises TrainingError when no epoch left weights that answer with numbers, or the kept ones do not here.
        """
        if progress.best is None:
            raise TrainingError(
                f"no weights are worth keeping: the validation loss was not finite after any of {progress.epochs_done} "
                f"epochs; lower train.lr, lengthen train.warmup_epochs or set train.clip_grad"
            )
        seen: list[tuple[Any, Any]] = []
        with self._one_line_memory(), full_float32():
            tested = evaluate(
                self.task,
                self.best_model(progress),
                *self._evaluation("test"),
                self.device,
                world=self.world,
                answers=None if self.data.multi_label else lambda *answer: seen.append(answer),
            )
        if not math.isfinite(tested["loss"]):
            raise TrainingError(
                f"the kept weights (epoch {progress.best['epoch']}) have a test loss of {tested['loss']}: look at the "
                f"test images, or train with train.clip_grad or a lower train.lr"
            )
        self.answers = [each for share in self.world.gather(seen) for each in share]
        return {
            f"test_{self.metric}": tested[self.metric],
            "test_loss": tested["loss"],
            f"val_{self.metric}": progress.best[f"val_{self.metric}"],
            "val_loss": progress.best["val_loss"],
            "best_epoch": progress.best["epoch"],
            "epochs": progress.epochs_done,
            "seconds": round(progress.seconds, 1),
        }

    def pictures(self) -> dict[str, Figure]:
        """After `test`, by file name: the confusion matrix, the most confused images, an augmented batch."""
        import torch

        from isthmus.training import pictures

        files = [path for path, _ in self.images.reader.samples]
        seed_for("epoch", seed=self.config.seed)
        images, numbers = next(iter(self.train_loader))
        names = [files[int(number)].name for number in numbers]
        drawn = {"train_batch.png": pictures.batch(images, names, preprocessing=self.preprocessing)}
        if not self.answers:
            return drawn
        numbers = torch.cat([each for each, _ in self.answers])
        logits = torch.cat([each for _, each in self.answers])
        # Each image once: what timm pads distributed shares with comes twice.
        numbers, first = numbers.unique(return_inverse=True)
        kept = torch.empty(len(numbers), logits.shape[1]).index_copy_(0, first, logits)
        tested = loaders.dataset(self.data, "test").reader
        predictions = pictures.Predictions(
            numbers=numbers.numpy(),
            labels=tested.labels()[numbers].numpy(),
            probabilities=kept.softmax(1).numpy(),
        )
        drawn["confusion_matrix.png"] = pictures.confusion_matrix(predictions, self.data.classes)
        confused = pictures.most_confused(
            predictions, [path for path, _ in tested.samples], self.data.classes
        )
        return drawn | ({"most_confused.png": confused} if confused is not None else {})

    def best_model(self, progress: Progress) -> torch.nn.Module:
        """The trained module with the weights that are kept, in eval mode, on the training device."""
        import torch

        assert progress.best is not None
        model = self._weights()
        model.load_state_dict(progress.best["state_dict"])
        # safetensors writes contiguous tensors only, which channels_last weights are not.
        return model.to(memory_format=torch.contiguous_format).eval()

    def _validate(self, val: tuple[Any, torch.Tensor], epoch: int, progress: Progress) -> dict[str, float]:
        """Validate the weights and their moving average; the better of them may become what is kept."""
        from timm.utils import distribute_bn

        if self.world.is_many and self.config.dist_bn != "none":
            distribute_bn(self._weights(), self.world.size, reduce=self.config.dist_bn == "reduce")
        candidates = {"model": self._weights()}
        if self.task.has_ema():
            candidates["ema"] = self._weights(ema=True)
        metrics: dict[str, float] = {}
        found: list[dict[str, Any]] = []
        for weights, candidate in candidates.items():
            scores = evaluate(self.task, candidate, *val, self.device, world=self.world)
            prefix = "val_" if weights == "model" else "val_ema_"
            metrics |= {f"{prefix}{self.metric}": scores[self.metric], f"{prefix}loss": scores["loss"]}
            if not math.isfinite(scores["loss"]):
                # No candidates, the last epoch's neither.
                log.warning(
                    "the validation loss of the %s weights is %s after epoch %d: they are not kept",
                    weights,
                    scores["loss"],
                    epoch + 1,
                )
                continue
            found.append(
                {
                    "epoch": epoch + 1,
                    "weights": weights,
                    f"val_{self.metric}": scores[self.metric],
                    "val_loss": scores["loss"],
                }
            )
        best = max(found, key=self._merit, default=None)
        if best is not None and (
            progress.best is None
            or self.config.keep == "last"
            or self._merit(best) > self._merit(progress.best)
        ):
            state = candidates[best["weights"]].state_dict()
            progress.best = best | {
                "state_dict": {key: value.detach().cpu().clone() for key, value in state.items()}
            }
        return metrics

    def _merit(self, candidate: dict[str, Any]) -> tuple[float, float]:
        """The metric first, then the lower loss."""
        return candidate[f"val_{self.metric}"], -candidate["val_loss"]

    def _weights(self, *, ema: bool = False) -> torch.nn.Module:
        """The model itself, out of whatever the task, torch.compile and DDP put around it."""
        from timm.utils import unwrap_model

        model: torch.nn.Module = unwrap_model(self.task.get_eval_model(ema=ema))
        return model

    def _trainer(
        self, bar: Any, progress: Progress, stop: StopRequest, save: Callable[[Progress], None]
    ) -> Trainer:
        def after_step(loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        def pause(here: EpochPosition, settle: Callable[[], None]) -> None:
            asked = self.world.most(int(stop.received is not None))
            due = self.config.save_every and here.batches % self.config.save_every < self.config.accumulate
            if not asked and not due:
                return
            settle()
            states = self.world.gather(here.state())
            progress.within = {
                "batches": here.batches,
                "sums": [each["sums"] for each in states],
            }
            save(progress)
            progress.within = None
            where = f"after step {here.batches} of {len(self.train_loader)} in epoch {here.number + 1}"
            self._stop_if_asked(stop, f"{where} of {self.epochs}")

        return Trainer(
            task=self.task,
            loader=self.train_loader,
            labels=self.images.reader.labels().to(self.device),
            optimizer=self.optimizer,
            scheduler=None if self.config.step_on_epochs else self.scheduler,
            scaler=self.scaler,
            mixup=self.mixup,
            device=self.device,
            precision=self.config.precision,
            channels_last=self.config.channels_last,
            accumulate=self.config.accumulate,
            clip_grad=self.config.clip_grad,
            clip_mode=self.config.clip_mode,
            skip_nan=self.config.on_nan == "skip",
            seed=self.config.seed,
            world=self.world,
            name_of=lambda number: self.images.reader.samples[number][0],
            after_step=after_step,
            pause=pause,
        )

    def _stop_if_asked(self, stop: StopRequest, position: str) -> None:
        """Raises TrainingInterruptedError on every process when a signal has reached one of them."""
        received = max(self.world.gather(int(stop.received or 0)))
        if received:
            stop.raise_for(signal.Signals(received), position)

    def _put_schedule_at(self, epochs: int, batches: int) -> None:
        if self.scheduler is None or not (epochs or batches):
            return
        if self.config.step_on_epochs:
            self.scheduler.step(epochs)
        else:
            self.scheduler.step_update(epochs * self.updates_per_epoch + batches // self.config.accumulate)

    def _mixing_ends(self, epoch: int) -> bool:
        off = self.config.augment.mix_off_epoch
        return self.mixup is not None and bool(off) and epoch >= off

    def _evaluation(self, split: str) -> tuple[Any, torch.Tensor]:
        """(loader, labels by image number) of a split."""
        images = loaders.dataset(self.data, split)
        loader = loaders.eval_loader(
            images, preprocessing=self.preprocessing, config=self.config, world_size=self.world.size
        )
        return loader, images.reader.labels()

    def _one_line_memory(self) -> Any:
        return out_of_memory_is_one_line(
            batch_size=self.config.batch_size, input_size=self.preprocessing["input_size"], device=self.device
        )

    def _log_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        every = -(-self.epochs // MOST_EPOCH_LINES)
        level = logging.INFO if (epoch + 1) % every == 0 or epoch + 1 == self.epochs else logging.DEBUG
        metric = f"val_{self.metric}"
        ema = f", ema {metrics[f'val_ema_{self.metric}']:.4f}" if self.task.has_ema() else ""
        skipped = f", {metrics['skipped']:.0f} steps left out" if "skipped" in metrics else ""
        log.log(
            level,
            f"epoch {epoch + 1}/{self.epochs}: train_loss {metrics['train_loss']:.4f}, "
            f"val_loss {metrics['val_loss']:.4f}, {metric} {metrics[metric]:.4f}{ema}, lr {metrics['lr']:.2e}, "
            f"{metrics['images_per_second']:.0f} images/s{skipped}",
        )
