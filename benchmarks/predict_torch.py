"""Classifies the images of a split in PyTorch, the way timm evaluates: prints {path: class id} as JSON.

python benchmarks/predict_torch.py CHECKPOINT SPLIT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import safetensors.torch
import timm
import timm.data
import torch


def main(checkpoint: Path, split: Path) -> None:
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    model = timm.create_model(
        record["model"]["name"], num_classes=record["model"]["num_classes"], **record["model"]["args"]
    )
    model.load_state_dict(safetensors.torch.load_file(checkpoint / "model.safetensors"))
    model.eval()
    preprocessing = record["preprocessing"]
    transform = timm.data.create_transform(
        tuple(preprocessing["input_size"]),
        is_training=False,
        interpolation=preprocessing["interpolation"],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
    )
    dataset = timm.data.ImageDataset(str(split), transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64)
    predicted: list[int] = []
    with torch.inference_mode():
        for images, _ in loader:
            predicted += model(images).argmax(1).tolist()
    print(json.dumps(dict(zip(dataset.filenames(absolute=False), predicted, strict=True))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
