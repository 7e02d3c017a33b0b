"""Trains a recipe by `isthmus train`'s own loop and by a bare one, epoch by epoch in turns, and prints JSON.

python benchmarks/training_worker.py speed RECIPE HOME EPOCHS [KEY=VALUE …]     (or under torchrun; on a GPU, if any)
python benchmarks/training_worker.py first-step bare|isthmus RECIPE HOME [KEY=VALUE …]

The bare loop is what one would write down: the same timm model, loader and optimizer, timm's moving average, the same
criterion, autocast and torch.compile, and nothing else. `first-step` gives the seconds from the start of the process to
the end of the first step.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from isthmus.cli import recipe as recipes


def main(what: str, *arguments: str) -> None:
    """Does one of the two and prints the answer on the last line, in a distributed run on rank 0."""
    if what == "first-step":
        print(json.dumps(first_step(*arguments)))
    else:
        speed(*arguments)


def read(recipe: str, *assignments: str) -> Any:
    """The recipe with `KEY=VALUE`s on top."""
    overrides = dict(recipes.parse_assignment(text) for text in assignments)
    return recipes.load(Path(recipe), overrides=overrides)


class BareLoop:
    """Model, loader, optimizer, criterion and moving average, as a short script has them."""

    def __init__(self, recipe: Any, data: Any, *, world_size: int = 1) -> None:
        import timm
        import torch
        from timm.optim import create_optimizer_v2
        from timm.task import ClassificationTask
        from timm.utils import ModelEmaV3

        from isthmus.training import loaders
        from isthmus.training.model import create_model, data_config
        from isthmus.training.settings import resolve_device

        train = recipe.train
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        assert timm
        self.device = resolve_device(train.device)
        self.bf16 = train.precision == "bf16"
        self.model = create_model(recipe.model, num_classes=len(data.classes)).to(self.device)
        preprocessing = data_config(self.model, recipe.model)
        if train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.model, decay=train.ema_decay) if train.ema_decay is not None else None
        self.forward = self.model
        if train.compile is not None:
            self.forward = torch.compile(self.model, backend=train.compile, mode=train.compile_mode)
        if world_size > 1:
            self.model = self.forward = torch.nn.parallel.DistributedDataParallel(self.model)
        self.channels_last = train.channels_last
        self.optimizer = create_optimizer_v2(
            self.model, opt=train.optimizer, lr=train.lr, weight_decay=train.weight_decay
        )
        arguments = {"loss_type": None, "smoothing": train.smoothing}
        self.criterion = ClassificationTask(
            torch.nn.Identity(), criterion_kwargs=arguments, verbose=False
        ).criterion
        images = loaders.dataset(data, "train")
        self.labels = images.reader.labels().to(self.device)
        self.loss_sum = torch.zeros((), device=self.device)
        self.loader = loaders.train_loader(
            images,
            preprocessing=preprocessing,
            config=train,
            device=self.device,
            world_size=world_size,
        )

    def epoch(self) -> dict[str, float]:
        """{"images_per_second" of this process, "starting" and "waiting": shares of the time in which it waits for the
        first batch, which starts the loader's workers, and for later ones}."""
        self.model.train()
        started = last = time.perf_counter()
        waits, seen = [], 0
        for images, numbers in self.loader:
            waits.append(time.perf_counter() - last)
            self.step(images, numbers)
            seen += len(numbers)
            last = time.perf_counter()
        self.loss_sum.item()
        seconds = time.perf_counter() - started
        shares = {"starting": waits[0] / seconds, "waiting": sum(waits[1:]) / seconds}
        return {"images_per_second": seen / seconds, **shares}

    def step(self, images: Any, numbers: Any) -> None:
        """One update."""
        import torch

        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.criterion(self.forward(images), self.labels[numbers])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.loss_sum += loss.detach()


def speed(recipe_file: str, home: str, epochs: str, *assignments: str) -> None:
    """Images a second of both, epoch by epoch."""
    from isthmus.training.data import prepare
    from isthmus.training.distributed import joined
    from isthmus.training.fit import Fit
    from isthmus.training.unfinished import Progress, Unfinished

    recipe = read(recipe_file, *assignments)
    train = dataclasses.replace(recipe.train, epochs=int(epochs))
    turns: list[dict[str, float]] = []
    with joined("cpu") as world, tempfile.TemporaryDirectory() as folder:
        data = world.share(prepare(recipe.data, home=Path(home)) if world.is_first else None)
        fit = Fit(model=recipe.model, train=train, data=data, world=world)
        bare = BareLoop(recipe, data, world_size=world.size)
        gpu = GpuUse(bare.device)

        def report(_: int, metrics: dict[str, float]) -> None:
            busy = gpu.share()
            told = bare.epoch()
            speeds = world.gather(told["images_per_second"])
            turns.append(
                {
                    "isthmus": metrics["images_per_second"],
                    "bare": sum(speeds),
                    "busy": busy,
                    "starting": told["starting"],
                    "waiting": told["waiting"],
                }
            )
            gpu.share()

        unfinished = Unfinished(folder=Path(folder) / "states", keep=train.keep_states)

        def save(progress: Progress) -> None:
            if world.is_first:
                unfinished.save(fit.task, fit.optimizer, fit.scaler, progress)

        fit.run(Progress(), save=save, report=report)
        if world.is_first:
            # The first epochs warm up.
            print(json.dumps(turns[1:]))


class GpuUse:
    """How busy a GPU is, asked ten times a second; 0 on the CPU."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.samples: list[float] = []
        if device.type == "cuda":
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        import torch

        while True:
            self.samples.append(torch.cuda.utilization(self.device) / 100)
            time.sleep(0.1)

    def share(self) -> float:
        """The mean since the last call, 0 to 1."""
        samples, self.samples = self.samples, []
        return statistics.fmean(samples) if samples else 0.0


def first_step(which: str, recipe_file: str, home: str, *assignments: str) -> dict[str, float]:
    """{"seconds"} from the start of this process."""
    recipe = read(recipe_file, *assignments)
    if which == "bare":
        from isthmus.training.data import prepare

        bare = BareLoop(recipe, prepare(recipe.data, home=Path(home)))
        bare.model.train()
        bare.step(*next(iter(bare.loader)))
        return {"seconds": time.time() - psutil.Process().create_time()}
    from isthmus.training import loop, train

    class Reached(BaseException):
        """The first step is over."""

    step = loop.Trainer.step

    def once(self: loop.Trainer, *arguments: Any, **keywords: Any) -> Any:
        step(self, *arguments, **keywords)
        raise Reached

    loop.Trainer.step = once  # type: ignore[method-assign]
    try:
        train.train(
            name=recipe.name,
            data=recipe.data,
            model=recipe.model,
            train=recipe.train,
            home=Path(home),
            recipe=recipe.to_dict(),
            force=True,
        )
    except Reached:
        return {"seconds": time.time() - psutil.Process().create_time()}
    raise AssertionError("no step was made")


if __name__ == "__main__":
    main(*sys.argv[1:])
