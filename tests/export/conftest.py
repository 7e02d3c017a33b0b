"""A checkpoint and a data root as training leaves them: a small timm model and generated images.

torch is imported by the fixture that needs it: the tests of the TF half share this file and never ask for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.lineage.files import sha256_file

LABELS = ["blue", "green", "red", "white"]
SIZE = 32


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of four classes, of several sizes, modes and formats. Do not change them: copy."""
    return _make_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A complete checkpoint. Do not change it: make another."""
    return _make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "one", data_root)


@pytest.fixture
def make_checkpoint(tmp_path: Path, data_root: Path) -> Callable[..., Path]:
    """Makes a checkpoint of one's own; keywords change the record's `model`."""
    return lambda **changes: _make_checkpoint(tmp_path / "checkpoint", data_root, **changes)


def _make_images(root: Path, *, split: str = "test", per_class: int = 6) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in LABELS:
        folder = root / split / label
        folder.mkdir(parents=True)
        for i in range(per_class):
            height, width = (int(edge) for edge in rng.integers(28, 70, 2))
            coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            if i == 1:
                image = image.convert("L")
            if i == 2:
                image = image.convert("P")
            image.save(folder / f"{i}.jpg" if i == 3 else folder / f"{i}.png")
    return root


def _make_checkpoint(folder: Path, data_root: Path, *, model: str = "resnet10t", **changes: Any) -> Path:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=len(LABELS), **changes.get("args", {})).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # As after a training: fresh ones are the identity, and hide a wrong fusion.
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    folder.mkdir(parents=True)
    save_file(
        {key: value.contiguous() for key, value in net.state_dict().items()}, folder / "model.safetensors"
    )
    record = {
        "schema_version": 1,
        "name": "toy",
        "created": "2026-11-22T00:00:00Z",
        "weights_sha256": sha256_file(folder / "model.safetensors"),
        "fingerprint": "0",
        "model": {
            "name": model,
            "args": {},
            "pretrained_tag": None,
            "num_classes": len(LABELS),
            "input_size": [3, SIZE, SIZE],
            "head": "single_label",
            "labels": LABELS,
            **changes,
        },
        "preprocessing": {
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "crop_pct": 0.875,
            "crop_mode": "center",
        },
        "dataset": {
            "name": "toy",
            "source": "generated",
            "root": str(data_root),
            "digest": "0" * 64,
            "splits": {"test": 24},
            "labels": LABELS,
        },
        "recipe": {},
        "metrics": {"val_top1": 0.25},
        "source": {"commit": None, "dirty": None, "remote": None},
        "versions": {},
        "mlflow": {"tracking_uri": None, "experiment_id": None, "run_id": None, "model_id": None},
    }
    (folder / "checkpoint.json").write_text(json.dumps(record))
    return folder
