"""Latency, size and distance from fp32 of each precision: writes the table of docs/precision.md.

python benchmarks/precision.py [--models resnet50 …]

Randomised weights (as `isthmus export --coverage` makes them): right for latency and size; their distances are far
larger than a trained model's. One process measures everything of one model, two calls of each in turn; the minimum
counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import ROOT, machine

PAGE = ROOT / "docs/precision.md"
MODELS = ("resnet50", "vit_small_patch16_224", "mobilenetv3_large_100")
PRECISIONS = ("fp32", "bf16", "int8")
BATCHES = (1, 16)
_START, _END = "<!-- measured: start -->\n", "<!-- measured: end -->\n"
_SIZE, _NUM_IMAGES, _REPEATS, _PAUSE_S = 224, 16, {1: 12, 16: 4}, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--step", choices=("torch", "lower", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        {"torch": write_onnx, "lower": lower, "measure": measure}[arguments.step](
            arguments.models[0], arguments.folder
        )
        return
    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("torch", "lower", "measure"):
                command = [sys.executable, __file__, "--step", step, "--models", model, "--folder", folder]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            rows.append({"model": model, **json.loads(Path(folder, "measured.json").read_text())})
            write_table(rows)


def write_onnx(name: str, folder: Path) -> None:
    """The torch half: model.onnx, images and torch's answers."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from isthmus.export.torch_half.model import to_nchw
    from isthmus.export.torch_half.onnx_model import write_onnx as write
    from isthmus.export.torch_half.randomize import randomize

    random, photographs = np.random.default_rng(0), load_sample_images().images
    pixels = []
    for number in range(_NUM_IMAGES):
        photograph = photographs[number % len(photographs)]
        edge = int(random.integers(100, min(photograph.shape[:2])))
        top, left = (int(random.integers(0, length - edge)) for length in photograph.shape[:2])
        window = Image.fromarray(photograph[top : top + edge, left : left + edge])
        pixels.append(np.asarray(window.resize((_SIZE, _SIZE))))
    images = (np.stack(pixels).astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.25)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    randomize(model, to_nchw(images[:8]))
    with torch.inference_mode():
        logits = model(torch.from_numpy(to_nchw(images))).numpy()
    np.savez(folder / "images.npz", pixels=np.stack(pixels), images=images, logits=logits)
    write(model, images[:2], folder / "model.onnx", exporter="torchscript", opset=17)


def lower(_: str, folder: Path) -> None:
    """One SavedModel for each precision, and one .tflite."""
    import numpy as np
    import tensorflow as tf

    from isthmus.export.reduced import Evaluation
    from isthmus.export.tf_half import litert, lowering, precision

    arrays = np.load(folder / "images.npz")
    calibration = Evaluation(
        pixels=arrays["pixels"],
        logits=arrays["logits"],
        labels=np.full(_NUM_IMAGES, -1),
        paths=tuple(str(number) for number in range(_NUM_IMAGES)),
        split="photographs",
        mean=np.full(3, 0.5, np.float32),
        std=np.full(3, 0.25, np.float32),
    )
    full = lowering.lower(folder / "model.onnx", rung="direct")
    for name in PRECISIONS:
        how: dict[str, Any] = {
            "precision": name,
            "input_size": [3, _SIZE, _SIZE],
            "calibration": calibration,
        }
        reduced = precision.reduced(full, **how)
        spec = tf.TensorSpec([None, _SIZE, _SIZE, 3], tf.float32, name="images")
        function = tf.function(reduced, input_signature=[spec], autograph=False).get_concrete_function()
        tf.saved_model.save(tf.Module(), str(folder / name), signatures=function)
        try:
            litert.convert(full, folder / f"{name}.tflite", **how)
        except Exception as error:  # noqa: BLE001 - the table says so
            (folder / f"{name}.refused").write_text(str(error))


def measure(_: str, folder: Path) -> None:
    """Everything in turn, call by call."""
    import numpy as np
    import onnxruntime
    import tensorflow as tf

    from isthmus.export.parity import logit_error

    arrays = np.load(folder / "images.npz")
    images, logits = arrays["images"], arrays["logits"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    calls: dict[str, Callable[[Any], Any]] = {
        "ort": lambda batch: session.run(None, {"images": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))})[
            0
        ]
    }
    for name in PRECISIONS:
        calls[name] = _saved_model(tf, folder / name)
    result: dict[str, Any] = {"ms": {}, "error": {}, "mb": {}, "tflite_mb": {}}
    for name in PRECISIONS:
        answers = calls[name](images)
        result["error"][name] = logit_error(logits, answers)
        result["mb"][name] = (folder / name / "saved_model.pb").stat().st_size / 2**20
        file = folder / f"{name}.tflite"
        result["tflite_mb"][name] = file.stat().st_size / 2**20 if file.is_file() else None
    for batch in BATCHES:
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_REPEATS[batch]):
            for name, call in calls.items():
                # ONNX Runtime's threads spin on for a while after a call, on the cores that the next one needs.
                time.sleep(_PAUSE_S)
                for _ in range(2):
                    started = time.perf_counter()
                    call(images[:batch])
                    taken[name].append(1000 * (time.perf_counter() - started))
        result["ms"][str(batch)] = {name: min(values[2:]) for name, values in taken.items()}
    (folder / "measured.json").write_text(json.dumps(result))


def _saved_model(tf: Any, path: Path) -> Callable[[Any], Any]:
    """A v1 session with default options: what TensorFlow Serving runs."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    signature = loaded.signature_def["serving_default"]
    (output,) = signature.outputs.values()
    call = session.make_callable([output.name], [signature.inputs["images"].name])
    return lambda batch: call(batch)[0]


def write_table(rows: list[dict[str, Any]]) -> None:
    """Replace what stands between the marks."""
    lines = [
        machine(),
        "",
        "| model | batch | ONNX Runtime fp32, ms | fp32 | bf16 | int8 | (each ÷ ONNX Runtime) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for batch, ms in row["ms"].items():
            ratios = " | ".join(f"{ms[name] / ms['ort']:.2f}" for name in PRECISIONS)
            lines.append(f"| {row['model']} | {batch} | {ms['ort']:.1f} | {ratios} | |")
    lines += [
        "",
        "| model | SavedModel MB: fp32, bf16, int8 | model.tflite MB | distance from torch (randomised) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            ", ".join(_number(row[key].get(name), form) for name in PRECISIONS)
            for key, form in (("mb", ".1f"), ("tflite_mb", ".1f"), ("error", ".1g"))
        ]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    before, _, rest = PAGE.read_text().partition(_START)
    PAGE.write_text(before + _START + "\n".join(lines) + "\n" + _END + rest.partition(_END)[2])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    main()
