"""Small real things to test the pipeline on: an image folder, and bundles of linear classifiers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isthmus.tfx_pipeline.imports import torch_kept_out

with torch_kept_out():
    import tfx.components  # noqa: F401

from tfx.dsl.components.base import base_beam_executor, base_executor
from tfx.types import standard_artifacts
from tfx.types.artifact import Artifact

from isthmus.export import bundle as bundles
from isthmus.export.config import STAGES, GateConfig
from isthmus.export.reference import Reference
from isthmus.export.tf_half import saving
from isthmus.lineage import tracking
from isthmus.lineage.files import canonical_json, sha256_file, tree_digest, write_json
from isthmus.tfx_pipeline import bundle_importer, classes, image_example_gen, sources
from isthmus.tfx_pipeline.data_config import InputConfig

LABELS = ["blue", "green", "red"]
SIZE = 8
MEAN, STD = np.float32(0.5), np.float32(0.25)
PREPROCESSING = {
    "input_size": [3, SIZE, SIZE],
    "interpolation": "bicubic",
    "mean": [float(MEAN)] * 3,
    "std": [float(STD)] * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}
NUM_IMAGES = {"train": 16, "val": 6, "test": 10}

Quality = Literal["good", "bad", "blind to blue"]
Fault = Literal["swapped channels", "wrong normalisation", "dies at batch 7"]


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
    """[C, channels]: a class's score is the mean of its channel; the bad model confuses two classes, the blind one
    never answers with the first."""
    weights = np.zeros((len(LABELS), 3), np.float32)
    order = ["green", "blue", "red"] if quality == "bad" else LABELS
    for index, label in enumerate(order):
        weights[index, 2 - LABELS.index(label)] = 20
    if quality == "blind to blue":
        # The images are darker than the mean: the sum of all channels is far below any one of them.
        weights[LABELS.index("blue")] = 60
    return weights


def _logits_fn(weights: np.ndarray, fault: Fault | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """What lowering gives for a model: float32 [N, H, W, 3] (NHWC, preprocessed) -> logits float32 [N, C]."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        if fault == "swapped channels":
            images = images[..., ::-1]
        if fault == "dies at batch 7":
            images = tf.cond(tf.equal(tf.shape(images)[0], 7), lambda: _abort(images), lambda: images)
        return tf.linalg.matmul(tf.reduce_mean(images, axis=[1, 2]), tf.constant(weights), transpose_b=True)

    return logits


def _abort(images: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.raw_ops.Abort(error_msg="as the test wants it")]):
        return tf.identity(images)


def _save_model(target: Path, images: Path, weights: np.ndarray, *, fault: Fault | None) -> None:
    preprocessing = dict(PREPROCESSING)
    if fault == "wrong normalisation":
        preprocessing["mean"] = [0.0, 0.0, 0.0]
    saving.save(
        _logits_fn(weights, fault),
        target=target,
        preprocessing=preprocessing,
        labels=LABELS,
        head="single_label",
        warmup_batch_sizes=(1,),
        sample_images=[(images / "test" / "red" / "000.png").read_bytes()],
    )


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
        "preprocessing": PREPROCESSING,
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
        "parity": {
            "passed": True,
            "gates": dataclasses.asdict(GateConfig()),
            "stages": [
                {
                    "stage": stage,
                    "error": 0.0,
                    "limit": 0.0 if stage == "preprocessing" else 1e-3,
                    "top1_agreement": 1.0,
                    "passed": True,
                }
                for stage in STAGES
            ],
        },
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
    _save_model(target / "saved_model", images, weights, fault=fault)
    _reference(images, weights).save(target / "reference.npz")
    (target / "model.onnx").write_bytes(weights.tobytes())
    write_json(target / "parity.json", {"passed": True})
    (target / "parity.png").write_bytes(b"")
    manifest = _manifest(name, images)
    manifest["export"]["onnx_sha256"] = sha256_file(target / "model.onnx")
    bundles.seal(target, manifest)
    return target


@pytest.fixture(scope="session")
def make_bundle(shared_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a bundle once per set of arguments; tests that change one copy it first."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(*, quality: Quality = "good", fault: Fault | None = None) -> Path:
        key = (quality, fault)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundles") / "bundle"
            made[key] = build_bundle(folder, shared_images, quality=quality, fault=fault)
        return made[key]

    return make


def _execute(
    executor_class: type[Any],
    *,
    inputs: dict[str, Artifact] | None = None,
    outputs: dict[str, Artifact],
    properties: dict[str, Any] | None = None,
) -> None:
    """Run a component's executor as a launcher does: one artifact per key, the output folders made."""
    for artifact in outputs.values():
        Path(artifact.uri).mkdir(parents=True, exist_ok=True)
    if issubclass(executor_class, base_beam_executor.BaseBeamExecutor):
        context = base_beam_executor.BaseBeamExecutor.Context(
            beam_pipeline_args=[
                "--runner=FnApiRunner",
                "--direct_running_mode=in_memory",
                "--direct_num_workers=1",
                "--sdk_container_image=unused",
            ]
        )
    else:
        context = base_executor.BaseExecutor.Context()
    executor_class(context).Do(
        {key: [artifact] for key, artifact in (inputs or {}).items()},
        {key: [artifact] for key, artifact in outputs.items()},
        dict(properties or {}),
    )


def _artifact_at(artifact_class: type[Artifact], uri: Path) -> Any:
    """A fresh artifact of a type, with its folder."""
    artifact = artifact_class()
    artifact.uri = str(uri)
    return artifact


def _ingest(
    root: Path | str, target: Path, *, labels: list[str] = LABELS, config: InputConfig | None = None
) -> standard_artifacts.Examples:
    """Run ImageExampleGen on a source."""
    config = dataclasses.replace(config or InputConfig(), path=str(root))
    return _ingest_source(sources.look(config, data_root=None, labels=labels), target, labels=labels)


def _ingest_source(
    source: sources.Source, target: Path, *, labels: list[str] = LABELS
) -> standard_artifacts.Examples:
    """Run ImageExampleGen on a source that was looked at."""
    examples = _artifact_at(standard_artifacts.Examples, target)
    classes_file = target.with_name(f"{target.name}.classes.json")
    classes_file.parent.mkdir(parents=True, exist_ok=True)
    classes_file.write_bytes(classes.content(labels, source.class_map))
    _execute(
        image_example_gen.Executor,
        outputs={"examples": examples},
        properties={
            "input_base": source.pattern,
            "source": canonical_json(source.properties()),
            "splits": '["serving"]' if source.kind == "prediction_log" else '["train", "val", "test"]',
            "classes_file": str(classes_file),
            "fingerprint": source.fingerprint,
        },
    )
    return examples


@pytest.fixture(scope="session")
def examples(shared_images: Path, tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Examples:
    """The image folder as Examples."""
    return _ingest(shared_images, tmp_path_factory.mktemp("examples") / "1")


def _import(bundle: Path, target: Path) -> standard_artifacts.Model:
    """Run BundleImporter on a bundle."""
    model = _artifact_at(standard_artifacts.Model, target)
    _execute(bundle_importer.Executor, outputs={"model": model}, properties={"bundle": str(bundle)})
    return model


@pytest.fixture
def multi_label_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A sealed bundle that says it answers with several classes."""
    bundle = Path(shutil.copytree(make_bundle(), tmp_path / "multi-label"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"]["head"] = "multi_label"
    bundles.seal(bundle, manifest)
    return bundle


@pytest.fixture
def make_model(make_bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., standard_artifacts.Model]:
    """Builds a bundle (see `make_bundle`) and imports it."""

    def make(**arguments: Any) -> standard_artifacts.Model:
        bundle = make_bundle(**arguments)
        return _import(bundle, tmp_path / f"model-{bundle.parent.name}")

    return make


# Tests cannot import a conftest.py: what they call comes as fixtures.


@pytest.fixture(scope="session")
def execute() -> Callable[..., None]:
    """See `_execute`."""
    return _execute


@pytest.fixture(scope="session")
def artifact_at() -> Callable[..., Any]:
    """See `_artifact_at`."""
    return _artifact_at


@pytest.fixture(scope="session")
def ingest() -> Callable[..., standard_artifacts.Examples]:
    """See `_ingest`."""
    return _ingest


@pytest.fixture(scope="session")
def ingest_source() -> Callable[..., standard_artifacts.Examples]:
    """See `_ingest_source`."""
    return _ingest_source


@pytest.fixture(scope="session")
def import_bundle() -> Callable[..., standard_artifacts.Model]:
    """See `_import`."""
    return _import


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables; making them takes seconds, copying them none."""
    home = tmp_path_factory.mktemp("store")
    tracking.connect(home)
    return home / "mlflow.db"


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """An S3 service on loopback with a bucket; the credentials come from the environment, as they do elsewhere."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="models")
        yield "s3://models"
    server.stop()
