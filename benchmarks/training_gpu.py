"""What `isthmus train` costs beside a bare loop on a GPU, where there is one; elsewhere it says so and writes nothing.

python benchmarks/training_gpu.py [--images 40000] [--epochs 3] [--limit-s 600]

The images are JPEGs of 256 x 256 made here, a folder for each of ten classes, decoded and cropped by timm's loader.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import ROOT, write_section

from training import WORKER, last_line, row

CLASSES = 10
DECODERS = max(1, min(14, (os.cpu_count() or 2) - 2))
BF16 = ("train.precision=bf16", "train.channels_last=true")
COMPILED = (*BF16, "train.compile=inductor")
SETUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("resnet50", "bf16, channels_last", BF16),
    ("resnet50", "bf16, channels_last, compile", COMPILED),
    ("vit_small_patch16_224", "bf16, compile", COMPILED),
    ("convnext_tiny", "bf16, channels_last, compile", COMPILED),
    ("resnet50", "fp32 (TF32)", ("train.precision=fp32", "train.channels_last=false")),
)


def write_images(arguments: tuple[Path, int]) -> None:
    """One class: `num` blurred noises, as large as photographs of this size are (some 15 KB)."""
    from PIL import Image

    folder, num = arguments
    folder.mkdir(parents=True)
    for index in range(num):
        coarse = np.random.default_rng([index, *folder.name.encode()]).integers(0, 256, (32, 32, 3), np.uint8)
        image = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.jpg", quality=90)


def measure(
    model: str, assignments: tuple[str, ...], root: Path, home: Path, *, epochs: int, limit_s: float
) -> list[dict[str, float]]:
    """The worker's turns, or none where it took too long or failed (what it said is printed)."""
    settings = [
        f"data.root={root}",
        "data.name=noise",
        f"model.name={model}",
        "model.pretrained=false",
        "train.batch_size=256",
        "train.ema_decay=null",
        "train.augment.color_jitter=0",
        f"train.workers={DECODERS}",
        *assignments,
    ]
    recipe = str(ROOT / "recipes/imagefolder.yaml")
    command = [sys.executable, WORKER, "speed", recipe, str(home), str(epochs), *settings]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        print(f"{model}: more than {limit_s:.0f} s", flush=True)
        return []
    if done.returncode:
        print(f"{model}: {done.stderr[-2000:]}", flush=True)
        return []
    return last_line(done.stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=600.0)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: the training on one is not measured")
        return
    table = []
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder) / "noise", Path(folder) / "home"
        with multiprocessing.Pool() as pool:
            pool.map(write_images, [(root / f"c{n}", arguments.images // CLASSES) for n in range(CLASSES)])
        for model, name, assignments in SETUPS:
            turns = measure(
                model, assignments, root, home, epochs=arguments.epochs, limit_s=arguments.limit_s
            )
            print(json.dumps({"model": model, "setup": name, "turns": turns}), flush=True)
            if turns:
                table.append(row([model, name], turns, shares=("busy", "starting", "waiting")))
                print(table[-1], flush=True)
    body = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}. Images a second, 224 × 224, batches of 256, "
        f"{DECODERS} decoding processes, the median of {arguments.epochs - 1} epochs each, "
        "in turns; the ratios are the median of the turns' and best over best (≥ 0.97 wanted). GPU: how much of "
        "the time in which isthmus train trains, validates and saves a kernel runs (NVML). Waits: the bare loop's "
        "share for the first batch of an epoch and for the others.",
        "",
        "| model | setup | isthmus train | bare loop | ÷ | best ÷ best | GPU | first batch | others |",
        "|---|---|---|---|---|---|---|---|---|",
        *table,
    ]
    write_section("Training on a GPU", "\n".join(body))


if __name__ == "__main__":
    main()
