"""Writes weights under which a timm model behaves like a trained one, for benchmarks that need no accuracy.

python benchmarks/random_weights.py mobilenetv3_large_100 weights.safetensors
"""

from __future__ import annotations

import sys

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from isthmus.export.torch_half.randomize import randomize


def main(name: str, path: str) -> None:
    """Builds the model, draws its constants, and takes its BatchNorm statistics from two photographs."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    _, height, width = model.default_cfg["input_size"]
    crops = [image[:height, :width] for image in load_sample_images().images]
    images = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0
    randomize(model, np.ascontiguousarray(images))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
