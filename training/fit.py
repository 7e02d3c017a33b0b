"""A model being fitted: built from a recipe, run epoch by epoch, tested once at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isthmus.training import loaders
from isthmus.training.config import ModelConfig, TrainConfig
from isthmus.training.data import PreparedData
from isthmus.training.interrupt import stop_requests
from isthmus.training.loop import Trainer, evaluate
from isthmus.training.memory import out_of_memory_is_one_line
from isthmus.training.model import create_model, data_config
from isthmus.training.progress import progress_bar
from isthmus.training.settings import create_optimizer, create_scheduler, resolve_device
from isthmus.training.unfinished import Progress

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask

log = logging.getLogger(__name__)

MOST_EPOCH_LINES = 10


class Fit:
    """Everything a run holds: the task (model, loss, moving average), its optimizer and schedule, and the
    loaders."""

    def __init__(self, *, model: ModelConfig, train: TrainConfig, data: PreparedData) -> None:
        """Build it all from the recipe; raises TrainingError for whatever timm or the machine cannot do."""
        import torch
        from timm.task import ClassificationTask
        from timm.utils import random_seed

        if train.threads is not None:
            torch.set_num_threads(train.threads)
        self.config, self.data, self.device = train, data, resolve_device(train.device)
        random_seed(train.seed)
        net = create_model(model, num_classes=len(data.classes))
        self.name = model.name
        self.preprocessing = data_config(net, model)
        net.to(self.device)
        if train.channels_last:
            net.to(memory_format=torch.channels_last)
        self.mixup = self._mixup()
        # Mixup hands out soft targets, which carry the smoothing already.
        criterion = {"soft_targets": True} if self.mixup else {"smoothing": train.smoothing}
        self.task: TrainingTask = ClassificationTask(
            net, criterion_kwargs=criterion, device=self.device, verbose=False
        )
        if train.ema_decay is not None:
            self.task.setup_ema(decay=train.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer(net, train)
        self.images = loaders.dataset(data, "train")
        self.train_loader = loaders.train_loader(
            self.images, preprocessing=self.preprocessing, config=train, device=self.device
        )
        self.scheduler = create_scheduler(self.optimizer, train, updates_per_epoch=len(self.train_loader))

    def describe(self) -> str:
        """One line: the model, its size, where and on what it is trained."""
        import torch

        num_parameters = sum(each.numel() for each in self.task.get_trainable_module().parameters())
        size = "x".join(map(str, self.preprocessing["input_size"]))
        where = (
            f"CPU, {torch.get_num_threads()} threads"
            if self.device.type == "cpu"
            else torch.cuda.get_device_name(self.device)
        )
        return (
            f"{self.name}, {num_parameters / 1e6:.2f} M parameters, {size}, {len(self.images)} images, "
            f"{self.config.epochs} epochs of {len(self.train_loader)} steps, {where}"
        )

    def run(
        self,
        progress: Progress,
        *,
        save: Callable[[TrainingTask, torch.optim.Optimizer, Progress], None],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """Train the epochs that `progress` lacks; after each: validate, `report(epoch, metrics)`, `save`.

        Raises TrainingInterruptedError on SIGTERM and Ctrl-C: what `save` wrote last is where to continue.
        """
        from timm.utils import random_seed

        updates_per_epoch = len(self.train_loader)
        if self.scheduler is not None and progress.epochs_done:
            self.scheduler.step_update(progress.epochs_done * updates_per_epoch)
        val = self._evaluation("val")
        steps = progress_bar(
            total=self.config.epochs * updates_per_epoch, initial=progress.epochs_done * updates_per_epoch
        )
        with steps as bar, stop_requests() as stop, self._one_line_memory():
            trainer = self._trainer(bar, stop.check)
            for epoch in range(progress.epochs_done, self.config.epochs):
                started = time.perf_counter()
                stop.position = f"after epoch {epoch} of {self.config.epochs}"
                bar.set_description(f"epoch {epoch + 1}/{self.config.epochs}")
                # Each epoch is seeded by its number alone, so that a resumed one is the one that was lost.
                random_seed(self.config.seed, rank=epoch + 1)
                metrics = trainer.epoch(epoch) | self._validate(val, epoch, progress)
                progress.history.append(metrics)
                progress.epochs_done = epoch + 1
                progress.seconds += time.perf_counter() - started
                report(epoch, metrics)
                save(self.task, self.optimizer, progress)
                self._log_epoch(epoch, metrics)

    def test(self, progress: Progress) -> dict[str, float]:
        """The kept weights on the test split, fp32, timm's evaluation transform; and all metrics of the
        run."""
        assert progress.best is not None
        with self._one_line_memory():
            tested = evaluate(self.task, self.best_model(progress), *self._evaluation("test"), self.device)
        return {
            "test_top1": tested["top1"],
            "test_loss": tested["loss"],
            "val_top1": progress.best["val_top1"],
            "val_loss": progress.best["val_loss"],
            "best_epoch": progress.best["epoch"],
            "epochs": progress.epochs_done,
            "seconds": round(progress.seconds, 1),
        }

    def best_model(self, progress: Progress) -> torch.nn.Module:
        """The trained module with the weights that are kept, in eval mode, on the training device."""
        import torch

        assert progress.best is not None
        model: torch.nn.Module = self.task.get_trainable_module()
        model.load_state_dict(progress.best["state_dict"])
        # safetensors writes contiguous tensors only, which channels_last weights are not.
        return model.to(memory_format=torch.contiguous_format).eval()

    def _validate(self, val: tuple[Any, torch.Tensor], epoch: int, progress: Progress) -> dict[str, float]:
        """Validate the weights and their moving average; the better of them may become what is kept."""
        candidates = {"model": self.task.get_trainable_module()}
        if self.task.has_ema():
            candidates["ema"] = self.task.get_trainable_module(ema=True).module
        metrics: dict[str, float] = {}
        found: list[dict[str, Any]] = []
        for weights, candidate in candidates.items():
            scores = evaluate(self.task, candidate, *val, self.device)
            prefix = "val_" if weights == "model" else "val_ema_"
            metrics |= {f"{prefix}top1": scores["top1"], f"{prefix}loss": scores["loss"]}
            found.append(
                {
                    "epoch": epoch + 1,
                    "weights": weights,
                    "val_top1": scores["top1"],
                    "val_loss": scores["loss"],
                }
            )
        best = max(found, key=_merit)
        if progress.best is None or self.config.keep == "last" or _merit(best) > _merit(progress.best):
            state = candidates[best["weights"]].state_dict()
            progress.best = best | {
                "state_dict": {key: value.detach().cpu().clone() for key, value in state.items()}
            }
        return metrics

    def _trainer(self, bar: Any, check: Callable[[], None]) -> Trainer:
        def after_step(loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            check()

        return Trainer(
            task=self.task,
            loader=self.train_loader,
            labels=self.images.reader.labels(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            mixup=self.mixup,
            device=self.device,
            bf16=self.config.precision == "bf16",
            channels_last=self.config.channels_last,
            clip_grad=self.config.clip_grad,
            name_of=lambda number: self.images.reader.samples[number][0],
            after_step=after_step,
        )

    def _evaluation(self, split: str) -> tuple[Any, torch.Tensor]:
        """(loader, labels by image number) of a split."""
        images = loaders.dataset(self.data, split)
        loader = loaders.eval_loader(images, preprocessing=self.preprocessing, config=self.config)
        return loader, images.reader.labels()

    def _mixup(self) -> Any:
        from timm.data import Mixup

        augment = self.config.augment
        if not augment.enabled or (augment.mixup == 0 and augment.cutmix == 0):
            return None
        return Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mix_prob,
            # In pairs, timm wants an even batch; whole batches take any.
            mode="batch",
            label_smoothing=self.config.smoothing,
            num_classes=len(self.data.classes),
        )

    def _one_line_memory(self) -> Any:
        return out_of_memory_is_one_line(
            batch_size=self.config.batch_size, input_size=self.preprocessing["input_size"], device=self.device
        )

    def _log_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        every = -(-self.config.epochs // MOST_EPOCH_LINES)
        level = logging.INFO if (epoch + 1) % every == 0 or epoch + 1 == self.config.epochs else logging.DEBUG
        ema = f", ema {metrics['val_ema_top1']:.4f}" if "val_ema_top1" in metrics else ""
        line = (
            "epoch {epoch}/{epochs}: train_loss {train_loss:.4f}, val_loss {val_loss:.4f}, "
            "val_top1 {val_top1:.4f}{ema}, lr {lr:.2e}, {images_per_second:.0f} images/s"
        )
        log.log(level, line.format(epoch=epoch + 1, epochs=self.config.epochs, ema=ema, **metrics))


def _merit(candidate: dict[str, Any]) -> tuple[float, float]:
    """Accuracy first, then the lower loss."""
    return candidate["val_top1"], -candidate["val_loss"]
