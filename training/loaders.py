"""timm's own datasets and loaders over prepared images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.training.config import AugmentConfig, TrainConfig
from isthmus.training.data import PreparedData
from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from timm.data import ImageDataset

COLOR_JITTER_OFF = None


class NumberedReader:
    """A timm reader whose target is the image's number, so that a batch which goes wrong can be named.

    `labels[number]` is the class, `samples[number]` the file.
    """

    def __init__(self, samples: list[tuple[Path, Any]], *, num_classes: int | None = None) -> None:
        self.samples = samples
        self.num_classes = num_classes

    def __getitem__(self, number: int) -> tuple[io.BytesIO, int]:
        """(encoded image, number). A file that vanished stops the run: timm would silently take its
        neighbour."""
        path, _ = self.samples[number]
        try:
            return io.BytesIO(path.read_bytes()), number
        except OSError as problem:
            raise TrainingError(
                f"{path} cannot be opened any more ({problem.strerror}); prepare again"
            ) from problem

    def __len__(self) -> int:
        return len(self.samples)

    def labels(self) -> torch.Tensor:
        """int64 [N], the class of each number; with `num_classes` float32 [N, C], 1 for each of its classes."""
        import torch

        if self.num_classes is not None:
            dense = torch.zeros(len(self.samples), self.num_classes)
            for number, (_, labels) in enumerate(self.samples):
                dense[number, labels] = 1.0
            return dense
        return torch.tensor([label for _, label in self.samples], dtype=torch.int64)


def dataset(data: PreparedData, split: str) -> ImageDataset:
    """timm's ImageDataset over one split; images are opened as RGB."""
    from timm.data import ImageDataset

    reader = NumberedReader(data.images(split), num_classes=len(data.classes) if data.multi_label else None)
    return ImageDataset(str(data.root / split), reader=reader)


def train_loader(
    images: ImageDataset,
    *,
    preprocessing: dict[str, Any],
    config: TrainConfig,
    device: torch.device,
    world_size: int = 1,
) -> Any:
    """Shuffled, augmented batches of (float32 [B, C, H, W] on `device`, int64 [B] image numbers).

    Normalisation and random erasing run on the device (timm's PrefetchLoader); the last, smaller batch is
    dropped. In a distributed run each process gets its share.
    """
    from timm.data import AugMixDataset, create_loader

    share = -(-len(images) // world_size)
    source = AugMixDataset(images, num_splits=config.augment.splits) if config.augment.splits > 1 else images
    return create_loader(
        source,
        input_size=tuple(preprocessing["input_size"]),
        batch_size=min(config.batch_size, share),
        is_training=True,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        crop_pct=preprocessing["crop_pct"],
        num_workers=config.workers,
        # Fresh workers every epoch are seeded from the epoch alone: a resumed run sees the same images.
        persistent_workers=False,
        pin_memory=device.type == "cuda",
        device=device,
        distributed=world_size > 1,
        **_transform_arguments(config.augment),
    )


def set_epoch(loader: Any, *, seed: int, epoch: int) -> None:
    """Order the epoch by seed and number alone: the same permutation in one process and, dealt out, in many."""
    import torch

    sampler = loader.sampler
    if hasattr(sampler, "set_epoch"):
        sampler.seed = seed
        sampler.set_epoch(epoch)
    else:
        sampler.generator = torch.Generator().manual_seed(seed + epoch)


def eval_loader(
    images: ImageDataset, *, preprocessing: dict[str, Any], config: TrainConfig, world_size: int = 1
) -> Any:
    """Batches of (float32 [B, C, H, W] on the CPU, image numbers), in order, none dropped; in a distributed run
    the share of this process, which timm pads to the same length everywhere.

    Exactly timm.data.create_transform's evaluation transform, the one that the export is compared with.
    """
    from timm.data import create_loader

    return create_loader(
        images,
        input_size=tuple(preprocessing["input_size"]),
        batch_size=config.eval_batch_size,
        is_training=False,
        use_prefetcher=False,
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        num_workers=config.workers,
        persistent_workers=False,
        distributed=world_size > 1,
    )


def _transform_arguments(augment: AugmentConfig) -> dict[str, Any]:
    """Our names to timm's."""
    return {
        "no_aug": not augment.enabled,
        "train_crop_mode": augment.crop_mode,
        "scale": augment.scale,
        "ratio": augment.ratio,
        "hflip": augment.hflip,
        "vflip": augment.vflip,
        # timm adds a colour jitter of strength 0, which costs as much as any other, unless it gets None.
        "color_jitter": augment.color_jitter or COLOR_JITTER_OFF,
        "auto_augment": augment.auto_augment,
        "re_prob": augment.random_erasing,
        "re_mode": augment.random_erasing_mode,
        "re_count": augment.random_erasing_count,
        "re_split": augment.resplit,
        "color_jitter_prob": augment.color_jitter_prob,
        "grayscale_prob": augment.grayscale_prob,
        "gaussian_blur_prob": augment.gaussian_blur_prob,
        "num_aug_splits": augment.splits,
        "num_aug_repeats": augment.repeats,
        "interpolation": augment.interpolation,
    }
