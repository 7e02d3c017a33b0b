"""Small real things to test the pipeline on: an image folder, and bundles whose models are linear classifiers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isthmus.export import bundle as bundles
from isthmus.export.reference import Reference
from isthmus.lineage.files import sha256_file, tree_digest, write_json

LABELS = ["blue", "green", "red"]
SIZE = 8
MEAN, STD = np.float32(0.5), np.float32(0.25)
NUM_IMAGES = {"train": 16, "val": 6, "test": 10}

Quality = Literal["good", "bad"]
Fault = Literal["swapped channels", "wrong normalisation", "crash"]


def write_image_folder(root: Path) -> Path:
    """Noisy 8x8 PNGs in which the class's own channel is the brightest; the same files every time."""
    random = np.random.default_rng(7)
    for split, count in NUM_IMAGES.items():
        for label in LABELS:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (SIZE, SIZE, 3))
                pixels[..., 2 - LABELS.index(label)] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder that no test changes."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture
def images(shared_images: Path, tmp_path: Path) -> Path:
    """A copy of the image folder that the test may change."""
    return Path(shutil.copytree(shared_images, tmp_path / "images"))


def _normalize(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float32) / np.float32(255) - MEAN) / STD


def _weights(quality: Quality) -> np.ndarray:
    """[C, channels]: a class's score is the mean of its channel; the bad model confuses two of the classes."""
    weights = np.zeros((len(LABELS), 3), np.float32)
    order = LABELS if quality == "good" else ["green", "blue", "red"]
    for index, label in enumerate(order):
        weights[index, 2 - LABELS.index(label)] = 20
    return weights


class LinearModel(tf.Module):
    """The SavedModel of a bundle: every signature of the contract around a linear classifier of mean colours."""

    def __init__(self, weights: np.ndarray, *, manifest_file: Path, fault: Fault | None) -> None:
        super().__init__()
        self.weights = tf.constant(weights)
        self.labels = tf.constant(LABELS)
        self.fault = fault
        self.manifest_file = tf.saved_model.Asset(str(manifest_file))

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        if self.fault == "crash":
            images = tf.py_function(lambda x: x, [images], tf.float32)
            images.set_shape([None, SIZE, SIZE, 3])
        return tf.linalg.matmul(tf.reduce_mean(images, axis=[1, 2]), self.weights, transpose_b=True)

    def preprocess(self, encoded: tf.Tensor) -> tf.Tensor:
        def decode(one: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.io.decode_png(one, channels=3), [SIZE, SIZE, 3])

        pixels = tf.map_fn(decode, encoded, fn_output_signature=tf.TensorSpec([SIZE, SIZE, 3], tf.uint8))
        if self.fault == "swapped channels":
            pixels = pixels[..., ::-1]
        scaled = tf.cast(pixels, tf.float32) / 255.0
        return scaled if self.fault == "wrong normalisation" else (scaled - MEAN) / STD

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        class_id = tf.argmax(logits, axis=-1, output_type=tf.int64)
        return {
            "probabilities": tf.nn.softmax(logits),
            "class_id": class_id,
            "label": tf.gather(self.labels, class_id),
        }

    def encoded_of(self, examples: tf.Tensor) -> tf.Tensor:
        return tf.io.parse_example(examples, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})[
            "image/encoded"
        ]

    def signatures(self) -> dict[str, Any]:
        strings = tf.TensorSpec([None], tf.string)

        def function(name: str, spec: tf.TensorSpec) -> Callable[[Callable[..., Any]], Any]:
            named = tf.TensorSpec(spec.shape, spec.dtype, name=name)
            return lambda body: tf.function(body, input_signature=[named])

        def examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = self.logits(self.preprocess(self.encoded_of(examples)))
            return {**self.answer(logits), "logits": logits}

        def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = self.logits(self.preprocess(self.encoded_of(inputs)))
            classes = tf.tile(self.labels[tf.newaxis], [tf.shape(logits)[0], 1])
            return {"classes": classes, "scores": tf.nn.softmax(logits)}

        def manifest(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            text = tf.strings.strip(tf.io.read_file(self.manifest_file))
            return {"manifest": tf.fill(tf.shape(inputs), text)}

        return {
            "serving_default": function("image_bytes", strings)(
                lambda image_bytes: self.answer(self.logits(self.preprocess(image_bytes)))
            ),
            "tensors": function("images", tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32))(
                lambda images: {"logits": self.logits(images)}
            ),
            "examples": function("examples", strings)(examples),
            "classify": function("inputs", strings)(classify),
            "manifest": function("inputs", strings)(manifest),
        }


def _save_model(target: Path, weights: np.ndarray, *, fault: Fault | None) -> None:
    asset = target.parent / "manifest.json"
    asset.write_text("{}")
    module = LinearModel(weights, manifest_file=asset, fault=fault)
    tf.saved_model.save(module, str(target), signatures=module.signatures())
    asset.unlink()
    (target / "fingerprint.pb").unlink()  # its content differs from save to save


def _reference(images: Path, weights: np.ndarray) -> Reference:
    paths = sorted(path.relative_to(images).as_posix() for path in (images / "test").rglob("*.png"))[::2]
    pixels = np.stack([np.asarray(Image.open(images / path)) for path in paths])
    normal = _normalize(pixels)
    return Reference(
        images=normal,
        pixels=pixels,
        logits=normal.mean(axis=(1, 2)) @ weights.T,
        encoded=tuple((images / path).read_bytes() for path in paths),
        labels=np.array([LABELS.index(Path(path).parent.name) for path in paths]),
        paths=tuple(paths),
    )


def _manifest(name: str, images: Path) -> dict[str, Any]:
    return {
        "name": name,
        "created": "2026-11-22T10:00:00+00:00",
        "isthmus": "0.1.0",
        "source": {"commit": "0" * 40, "dirty": False, "remote": None},
        "dataset": {
            "name": "colours",
            "source": "made for tests",
            "digest": tree_digest(images),
            "splits": {split: count * len(LABELS) for split, count in NUM_IMAGES.items()},
            "labels": LABELS,
        },
        "recipe": {"name": name},
        "model": {
            "name": "linear",
            "args": {},
            "pretrained_tag": None,
            "num_classes": len(LABELS),
            "input_size": [3, SIZE, SIZE],
            "head": "single_label",
            "labels": LABELS,
        },
        "preprocessing": {"input_size": [3, SIZE, SIZE], "mean": [float(MEAN)] * 3, "std": [float(STD)] * 3},
        "training": {
            "checkpoint_sha256": "1" * 64,
            "checkpoint": "checkpoint",
            "metrics": {},
            "source": {"commit": "0" * 40, "dirty": False, "remote": None},
            "versions": {},
            "mlflow": {},
        },
        "export": {
            "opset": 17,
            "exporter": "torchscript",
            "rung": "direct",
            "fingerprint": "2" * 64,
            "mlflow": {},
        },
        "versions": {},
        "parity": {"passed": True, "gates": {}, "stages": []},
        "overrides": [],
    }


def build_bundle(
    target: Path,
    images: Path,
    *,
    name: str = "colours",
    quality: Quality = "good",
    fault: Fault | None = None,
) -> Path:
    """A bundle whose reference is right and whose SavedModel has at most one fault."""
    weights = _weights(quality)
    target.mkdir(parents=True)
    _save_model(target / "saved_model", weights, fault=fault)
    _reference(images, weights).save(target / "reference.npz")
    (target / "model.onnx").write_bytes(weights.tobytes())
    write_json(target / "parity.json", {"passed": True})
    (target / "parity.png").write_bytes(b"")
    manifest = _manifest(name, images)
    manifest["export"]["onnx_sha256"] = sha256_file(target / "model.onnx")
    bundles.seal(target, manifest)
    return target


@pytest.fixture(scope="session")
def make_bundle(
    shared_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Path]]:
    """Builds a bundle once per set of arguments; tests that change one copy it first."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(*, quality: Quality = "good", fault: Fault | None = None) -> Path:
        key = (quality, fault)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundles") / "bundle"
            made[key] = build_bundle(folder, shared_images, quality=quality, fault=fault)
        return made[key]

    yield make
