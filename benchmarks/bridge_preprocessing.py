"""Preprocessing inside the graph against PIL: encoded bytes to the pixels that timm evaluates.

python benchmarks/bridge_preprocessing.py [--rounds 15]

Both decode, resize (bicubic, to 256) and crop (224 × 224); the pixels are compared first. The graph runs as it serves:
TensorFlow's threads, one for each core. PIL is measured in one thread, as a data loader's worker runs it, and at
batch 16 also in a pool of as many threads as there are cores (it releases the interpreter's lock).
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from measure import write_section
from PIL import Image
from sklearn.datasets import load_sample_images

from isthmus.export.tf_half import preprocessing

# Width and height of the photographs.
SIZES = ((300, 200), (500, 375), (1024, 768), (2048, 1536), (4000, 3000))
BATCHES = (1, 16)
# Above this a batch of 16 would be measured in minutes.
MOST_PIXELS = 16 * 2048 * 1536
RECIPE = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def photograph(size: tuple[int, int]) -> bytes:
    """A JPEG (quality 90, 4:2:0) of one of scikit-learn's photographs."""
    buffer = io.BytesIO()
    image = Image.fromarray(load_sample_images().images[0])
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_pil(encoded: bytes) -> np.ndarray:
    """timm's evaluation transform of RECIPE for a photograph wider than high, before it normalises."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    image = image.resize((256 * width // height, 256), Image.Resampling.BICUBIC)
    left, upper = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, upper, left + 224, upper + 224)))


def row(size: tuple[int, int], batch: int, rounds: int, pixels: Callable[..., tf.Tensor]) -> str:
    """One line of the table; every way takes its turn in every round."""
    encoded = [photograph(size)] * batch
    tensor = tf.constant(encoded)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ways: dict[str, Callable[[], object]] = {
            "graph": lambda: pixels(tensor).numpy(),
            "PIL": lambda: [with_pil(one) for one in encoded],
            "pool": lambda: list(pool.map(with_pil, encoded)),
        }
        differing = int((pixels(tensor).numpy() != np.stack([with_pil(one) for one in encoded])).sum())
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                started = time.perf_counter()
                call()
                times[way].append(time.perf_counter() - started)
    cells = [f"{size[0]} × {size[1]}", str(batch), f"{1e3 * min(times['graph']):.1f}"]
    for way in ("PIL", "pool"):
        pairs = zip(times["graph"], times[way], strict=True)
        cells.append(
            f"{statistics.median(a / b for a, b in pairs):.2f} ({min(times['graph']) / min(times[way]):.2f})"
        )
    if batch == 1:
        cells[-1] = ""
    return "| " + " | ".join([*cells, str(differing)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    steps = preprocessing.build(RECIPE)
    spec = tf.TensorSpec([None], tf.string)
    pixels = tf.function(steps.pixels, input_signature=[spec], autograph=False).get_concrete_function()
    lines = [
        "JPEG to the cropped pixels. Time of the graph over PIL's in one thread, and over PIL's in "
        f"{os.cpu_count()} threads; {rounds} rounds in turns, median of the rounds' ratios and, in brackets, best "
        "over best.",
        "",
        "| photograph | batch | ms | ÷ PIL | ÷ PIL in threads | differing values |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        row(size, batch, rounds, pixels)
        for size in SIZES
        for batch in BATCHES
        if batch * size[0] * size[1] <= MOST_PIXELS
    ]
    write_section("Preprocessing in the graph", "\n".join(lines))


if __name__ == "__main__":
    main()
