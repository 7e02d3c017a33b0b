"""Writes weights under which a timm model behaves like a trained one, for benchmarks that need no accuracy.

python benchmarks/random_weights.py mobilenetv3_large_100 weights.safetensors
"""

from __future__ import annotations

import sys

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config

from isthmus.export.torch_half.randomize import randomize

NUM_IMAGES = 16


def main(name: str, path: str) -> None:
    """Builds the model, draws its constants, and takes its BatchNorm statistics from pieces of two photographs."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    config = resolve_model_data_config(model)
    piece = create_transform(
        config["input_size"], is_training=True, color_jitter=None, mean=config["mean"], std=config["std"]
    )
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    images = torch.stack([piece(photographs[number % 2]) for number in range(NUM_IMAGES)])
    print(randomize(model, images.numpy()))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
