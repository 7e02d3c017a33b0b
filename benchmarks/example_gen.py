"""ImageExampleGen against a plain PIL loop, with one worker and with two, and what an image costs as they become more.

python benchmarks/example_gen.py [--images 60000] [--sizes 2000 20000 60000 200000]

Real images: Fashion-MNIST of the Debian package dataset-fashion-mnist as 28 x 28 PNGs, the smallest that anybody
would use, so that everything that is not decoding weighs most. Beyond 60,000 they are mirrored, then turned upside
down. Two loops to compare with: one that reads, decodes and converts and does nothing with the pixels, and one that
writes the same records by the means that a person would take (numpy, tf.train.Example, TFRecordWriter with gzip). Two
of the first at once, each with half of the images, are what a second core can be worth on this machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from measure import ROOT, run, write_section
from PIL import Image

DATA = Path("/usr/share/datasets/fashion-mnist")
PLOT = ROOT / "docs/example_gen.svg"
ROUNDS = 3
LABELS = [str(number) for number in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 60_000, 200_000])
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, folder = arguments.child
        print(json.dumps(CHILDREN[what](Path(folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            size: write_images(Path(temporary) / str(size), size)
            for size in sorted({arguments.images, *arguments.sizes})
        }
        ratios = compare(folders[arguments.images], arguments.images)
        costs = {
            size: {what: measured(what, folders[size]) for what in ("one worker", "two workers")}
            for size in arguments.sizes
        }
    PLOT.write_text(plot({size: cost["one worker"]["cpu_s"] / size for size, cost in costs.items()}))
    write_section("ImageExampleGen", ratios + "\n\n" + cost_table(costs))


def write_images(folder: Path, number: int) -> Path:
    """An image folder with 80 % train, 10 % val and 10 % test."""
    packed = gzip.decompress((DATA / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 28, 28)
    packed = gzip.decompress((DATA / "train-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(packed, np.uint8, offset=8)
    changes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda image: image,
        lambda image: image[:, ::-1],
        lambda image: image[::-1],
        lambda image: image[::-1, ::-1],
    ]
    for index in range(number):
        change, which = divmod(index, len(images))
        split = {8: "val", 9: "test"}.get(index % 10, "train")
        path = folder / split / str(labels[which]) / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(changes[change](images[which]))).save(path, compress_level=1)
    return folder


def compare(folder: Path, number: int) -> str:
    """Each way in turn, a few rounds, each in a process of its own; the ratios of each round."""
    rounds = [{what: measured(what, folder) for what in CHILDREN} for _ in range(ROUNDS)]
    rows = ["| way | images/s (best round) | CPU µs an image (best round) |", "|---|---|---|"]
    for what in CHILDREN:
        best = min(one[what]["wall_s"] for one in rounds)
        cpu = min(one[what]["cpu_s"] for one in rounds)
        rows.append(f"| {what} | {number / best:.0f} | {cpu / number * 1e6:.0f} |")

    def ratio(what: str, other: str, kind: str = "wall_s") -> str:
        return f"{statistics.median(one[other][kind] / one[what][kind] for one in rounds):.2f}"

    rows += [
        "",
        f"{number} Fashion-MNIST PNGs, {ROUNDS} rounds in turns, each in a process of its own, imports left out; "
        f"medians of the rounds' ratios. One worker makes {ratio('one worker', 'same records')} × the images/s of "
        f"the loop that writes the same records, and {ratio('one worker', 'decode only')} × those of the loop that "
        f"only decodes ({ratio('one worker', 'same records', 'cpu_s')} and "
        f"{ratio('one worker', 'decode only', 'cpu_s')} by CPU time). "
        f"Two workers make {ratio('two workers', 'one worker')} × the images/s of one; two loops that only decode, "
        f"each with half of the images, make {ratio('two decode', 'decode only')} × those of one such loop: that is "
        "what the second core can be worth here.",
    ]
    return "\n".join(rows)


def cost_table(costs: dict[int, dict[str, dict[str, float]]]) -> str:
    """One run of each size; what the images beyond the smallest take shows the rate without the start."""
    rows = [
        "| images | CPU µs an image | seconds | with two workers | peak MiB of the process | of all with two workers |",
        "|---|---|---|---|---|---|",
    ]
    for size, by_way in costs.items():
        one, two = by_way["one worker"], by_way["two workers"]
        rows.append(
            f"| {size} | {one['cpu_s'] / size * 1e6:.0f} | {one['wall_s']:.1f} | {two['wall_s']:.1f} "
            f"| {one['peak_mib']:.0f} | {two['peak_mib']:.0f} |"
        )
    seconds = {
        what: costs[max(costs)][what]["wall_s"] - costs[min(costs)][what]["wall_s"]
        for what in ("one worker", "two workers")
    }
    rows += [
        "",
        f"From {min(costs)} to {max(costs)} images two workers make "
        f"{seconds['one worker'] / seconds['two workers']:.2f} × the images/s of one: "
        "what a run costs once is left out there.",
        "",
        "![CPU time an image](example_gen.svg)",
    ]
    return "\n".join(rows)


def measured(what: str, folder: Path) -> dict[str, float]:
    """Runs one way in a process of its own; raises where it fails."""
    command = [sys.executable, __file__, "--child", what, str(folder)]
    done = run(["nice", "-n", "0", *command])
    result: dict[str, float] = json.loads(done.lines[-1])
    return {**result, "peak_mib": done.peak_rss_gib * 1024}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of a call, its worker processes included."""

    def cpu_s() -> float:
        ended = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        # The process that workers are forks of, with those of them that have ended.
        alive = [child.cpu_times() for child in psutil.Process().children()]
        return sum(usage.ru_utime + usage.ru_stime for usage in ended) + sum(map(sum, alive))

    before, started = cpu_s(), time.perf_counter()
    work()
    return {"wall_s": time.perf_counter() - started, "cpu_s": cpu_s() - before}


def images_below(folder: Path) -> list[str]:
    return [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]


def decode(paths: list[str]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")


def decode_only(folder: Path) -> dict[str, float]:
    return timed(lambda: decode(images_below(folder)))


def two_decode(folder: Path) -> dict[str, float]:
    """Two processes at once: what two cores can do for such work, whatever splits it."""

    def work() -> None:
        paths = images_below(folder)
        loops = [
            multiprocessing.get_context("fork").Process(target=decode, args=(paths[half::2],))
            for half in range(2)
        ]
        for loop in loops:
            loop.start()
        for loop in loops:
            loop.join()

    return timed(work)


def same_records(folder: Path) -> dict[str, float]:
    import tensorflow as tf

    def feature(value: bytes | int | float) -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))

    def record(path: str) -> bytes:
        encoded = Path(path).read_bytes()
        with Image.open(path) as image:
            channels, image_format = len(image.getbands()), image.format or ""
            rgb = image.convert("RGB")
        pixels, y = np.asarray(rgb, dtype=np.float64), np.asarray(rgb.convert("L"), dtype=np.float64)
        laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
        values: dict[str, bytes | int | float] = {
            "image/encoded": encoded,
            "image/filename": os.path.relpath(path, folder).encode(),
            "image/format": image_format.lower().encode(),
            "image/height": rgb.height,
            "image/width": rgb.width,
            "image/channels": channels,
            "image/bytes": len(encoded),
            "image/aspect": rgb.width / rgb.height,
            "image/brightness": float(y.mean()),
            "image/mean": float(pixels.mean()),
            "image/sharpness": float(laplacian.var()),
            "image/class/text": Path(path).parent.name.encode(),
            "image/class/label": int(Path(path).parent.name),
        }
        for index, channel in enumerate(("red", "green", "blue")):
            values[f"image/mean/{channel}"] = float(pixels[..., index].mean())
            values[f"image/std/{channel}"] = float(pixels[..., index].std())
        features = tf.train.Features(feature={name: feature(value) for name, value in values.items()})
        return bytes(tf.train.Example(features=features).SerializeToString())

    def work() -> None:
        with tempfile.TemporaryDirectory() as target:
            for split in ("train", "val", "test"):
                with tf.io.TFRecordWriter(f"{target}/{split}.gz", "GZIP") as writer:
                    for path in images_below(folder / split):
                        writer.write(record(path))

    return timed(work)


def example_gen(folder: Path, *, workers: int) -> dict[str, float]:
    from isthmus.tfx_pipeline.beam_options import beam_args, start_early
    from isthmus.tfx_pipeline.imports import torch_kept_out

    # As a run of the pipeline does: the workers' imports are left out as its own are.
    start_early(beam_args(workers=workers))
    with torch_kept_out():
        from tfx.dsl.components.base import base_beam_executor
        from tfx.types import standard_artifacts

        from isthmus.tfx_pipeline import classes, sources
        from isthmus.tfx_pipeline.data_config import InputConfig
        from isthmus.tfx_pipeline.image_example_gen import Executor

    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=beam_args(workers=workers))
    source = sources.look(InputConfig(), data_root=folder, labels=LABELS)
    with tempfile.TemporaryDirectory() as target:
        classes_file = Path(target, "classes.json")
        classes_file.write_bytes(classes.content(LABELS))
        artifact = standard_artifacts.Examples()
        artifact.uri = target
        properties = {
            "input_base": source.pattern,
            "source": json.dumps(source.properties()),
            "splits": json.dumps(["train", "val", "test"]),
            "classes_file": str(classes_file),
            "fingerprint": source.fingerprint,
        }
        return timed(lambda: Executor(context).Do({}, {"examples": [artifact]}, properties))


CHILDREN: dict[str, Callable[[Path], dict[str, float]]] = {
    "decode only": decode_only,
    "two decode": two_decode,
    "same records": same_records,
    "one worker": lambda folder: example_gen(folder, workers=1),
    "two workers": lambda folder: example_gen(folder, workers=2),
}


def plot(seconds: dict[int, float]) -> str:
    """CPU time an image over the number of images, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(seconds), [value * 1e6 for value in seconds.values()], marker="o", color="#1b4f8f")
    axes.set(
        xscale="log",
        ylim=(0, None),
        xlabel="images",
        ylabel="CPU µs an image",
        title="ImageExampleGen, one worker",
    )
    axes.grid(alpha=0.3)
    with tempfile.TemporaryDirectory() as folder:
        figure.savefig(Path(folder) / "plot.svg", metadata={"Date": None})
        return (Path(folder) / "plot.svg").read_text()


if __name__ == "__main__":
    assert DATA.is_dir(), "the images are in Debian's package dataset-fashion-mnist"
    main()
