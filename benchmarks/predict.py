"""Batch prediction against the bare model call at the same batch, in one process and taking turns.

python benchmarks/predict.py [--home FOLDER] [--images 1024] [--rounds 3]

Exports mobilenetv3_small_100 with drawn weights into FOLDER (kept and reused; a temporary one by default), writes
so many JPEGs of a photograph's windows, and answers for them with `isthmus pipeline predict`'s own function and with
nothing but the model. The load of the model and Beam's start are the first shard's; the rate is that of the others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure import write_section
from PIL import Image
from sklearn.datasets import load_sample_images

from isthmus.tfx_pipeline.predict import predict
from isthmus.tfx_pipeline.prediction_model import Model
from serving import exported

NAME = "mobilenetv3_small_100"
BATCH, SHARD = 64, 128


def main() -> None:
    """Measures, prints and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        home = arguments.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        saved_model = exported(NAME, home)
        write_images(scratch / "images", arguments.images)
        model = Model(saved_model)
        bare(model, scratch / "images", 2 * BATCH)
        rounds = [
            (
                bare(model, scratch / "images", arguments.images),
                with_beam(saved_model, scratch, number),
            )
            for number in range(arguments.rounds)
        ]
    rates = [statistics.median(one[side][0] for one in rounds) for side in (0, 1)]
    cpus = [statistics.median(one[side][1] for one in rounds) for side in (0, 1)]
    write_section(
        "Batch prediction",
        f"""{NAME} from 320 × 240 JPEGs, {arguments.images} images in shards of {SHARD}, batch {BATCH},
one process, medians of {arguments.rounds} rounds taking turns.

| | images/s | CPU ms an image |
|---|---|---|
| bare model call, images in memory | {rates[0]:.0f} | {cpus[0]:.2f} |
| `isthmus pipeline predict`: files to Parquet | {rates[1]:.0f} | {cpus[1]:.2f} |
| ratio | {rates[1] / rates[0]:.2f} | {cpus[0] / cpus[1]:.2f} |
""",
    )


def write_images(folder: Path, count: int) -> None:
    """Windows of a photograph, all different."""
    folder.mkdir()
    photograph = Image.fromarray(load_sample_images().images[0])
    random = np.random.default_rng(0)
    for number in range(count):
        left, top = random.integers(0, (photograph.width - 320, photograph.height - 240))
        window = photograph.crop((left, top, left + 320, top + 240))
        window.save(folder / f"{number:05d}.jpg", quality=90)


def bare(model: Model, folder: Path, count: int) -> tuple[float, float]:
    """(images/s, CPU milliseconds an image) of the model alone."""
    images = [path.read_bytes() for path in sorted(folder.iterdir())[:count]]
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(images), BATCH):
        model.predict(images[start : start + BATCH])
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return len(images) / seconds, cpu_s / len(images) * 1e3


def with_beam(saved_model: Path, scratch: Path, number: int) -> tuple[float, float]:
    """(images/s, CPU milliseconds an image) from the first finished shard to the last."""
    output = scratch / f"out-{number}"
    marks: list[tuple[float, float]] = []
    import isthmus.tfx_pipeline.predict as module

    write = module.table_of

    def marked(*arguments: object) -> object:
        marks.append((time.perf_counter(), time.process_time()))
        return write(*arguments)  # type: ignore[arg-type]

    module.table_of = marked  # type: ignore[assignment]
    try:
        result = predict(
            model=str(saved_model),
            data=str(scratch / "images"),
            output=output,
            home=scratch / "home",
            batch_size=BATCH,
            shard_size=SHARD,
        )
    finally:
        module.table_of = write
    counted = result.num_images - SHARD
    (first, first_cpu), (last, last_cpu) = marks[0], marks[-1]
    return counted / (last - first), (last_cpu - first_cpu) / counted * 1e3


if __name__ == "__main__":
    main()
