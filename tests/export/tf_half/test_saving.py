"""The SavedModel on disk: its signatures in both loaders, its assets, its warm-up requests, its bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from isthmus.export.bundle import write_manifest_copies
from isthmus.export.errors import ExportError
from isthmus.export.tf_half import lowering, saving
from isthmus.lineage.files import file_table

CLASSES = 4
FLOAT, INT64, STRING = tf.float32, tf.int64, tf.string
SIGNATURES = {
    "serving_default": (
        {"image_bytes": (STRING, [None])},
        {"probabilities": (FLOAT, [None, CLASSES]), "class_id": (INT64, [None]), "label": (STRING, [None])},
    ),
    "tensors": ({"images": (FLOAT, [None, 32, 32, 3])}, {"logits": (FLOAT, [None, CLASSES])}),
    "examples": (
        {"examples": (STRING, [None])},
        {
            "probabilities": (FLOAT, [None, CLASSES]),
            "class_id": (INT64, [None]),
            "label": (STRING, [None]),
            "logits": (FLOAT, [None, CLASSES]),
        },
    ),
    "classify": (
        {"inputs": (STRING, [None])},
        {"classes": (STRING, [None, CLASSES]), "scores": (FLOAT, [None, CLASSES])},
    ),
    "manifest": ({"inputs": (STRING, [None])}, {"manifest": (STRING, [None])}),
}


def save(
    target: Path, onnx: Path, preprocessing: dict, labels: list[str], images: list[bytes], **changes
) -> None:
    options = {
        "preprocessing": preprocessing,
        "labels": labels,
        "head": "single_label",
        "warmup_batch_sizes": [1, 8],
        "sample_images": images,
    }
    saving.save(lowering.lower(onnx, rung="onnx2tf"), target=target, **{**options, **changes})


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, tiny_cnn, preprocessing, labels, sample_images) -> Path:
    target = tmp_path_factory.mktemp("saved") / "saved_model"
    save(target, tiny_cnn, preprocessing, labels, sample_images)
    write_manifest_copies(target, {"name": "tiny", "label": "größe"})
    return target


@pytest.fixture(scope="module")
def loaded(saved_model):
    return tf.saved_model.load(str(saved_model))


@pytest.fixture(scope="module")
def in_session(saved_model):
    """Asks as TensorFlow Serving does: the v1 loader, a session, feeds and fetches by name."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    # As default graph while loading only: other tests trace and run eagerly.
    with graph.as_default():
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(saved_model))

    def ask(signature: str, **inputs: object) -> dict[str, np.ndarray]:
        definition = meta_graph.signature_def[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return session.run({k: v.name for k, v in definition.outputs.items()}, feeds)

    yield ask
    session.close()


@pytest.fixture(scope="module")
def expected_logits(tiny_cnn, loaded, sample_images, preprocessing) -> np.ndarray:
    pixels = loaded.pixels(tf.constant(sample_images)).numpy().astype(np.float32) / 255
    images = (pixels - np.float32(preprocessing["mean"])) / np.float32(preprocessing["std"])
    session = onnxruntime.InferenceSession(str(tiny_cnn), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def as_example(encoded: bytes) -> bytes:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    return tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": feature})
    ).SerializeToString()


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_exactly_the_contracts(saved_model, name):
    saved = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    signature_def = saved.meta_graphs[0].signature_def
    definition = signature_def[name]

    def table(infos) -> dict:
        return {
            key: (tf.dtypes.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape).as_list())
            for key, info in infos.items()
        }

    assert (table(definition.inputs), table(definition.outputs)) == SIGNATURES[name]
    method = "classify" if name == "classify" else "predict"
    assert definition.method_name == f"tensorflow/serving/{method}"
    others = set(signature_def) - {"__saved_model_init_op"}
    assert others == set(SIGNATURES)


def test_both_loaders_answer_alike(loaded, in_session, sample_images, expected_logits, labels):
    examples = [as_example(image) for image in sample_images]
    answers = {
        "v2": lambda name, **inputs: {
            k: v.numpy()
            for k, v in loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()}).items()
        },
        "v1": in_session,
    }
    for ask in answers.values():
        probabilities = softmax(expected_logits)
        winners = expected_logits.argmax(axis=-1)
        from_bytes = ask("serving_default", image_bytes=sample_images)
        from_examples = ask("examples", examples=examples)
        classified = ask("classify", inputs=examples)
        for answer in (from_bytes, from_examples):
            np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
            np.testing.assert_array_equal(answer["class_id"], winners)
            assert [label.decode() for label in answer["label"]] == [labels[i] for i in winners]
        np.testing.assert_allclose(from_examples["logits"], expected_logits, atol=1e-5)
        np.testing.assert_allclose(classified["scores"], probabilities, atol=1e-5)
        assert [[c.decode() for c in row] for row in classified["classes"]] == [labels] * len(examples)
        manifest = ask("manifest", inputs=[b"anything"])["manifest"]
        assert json.loads(manifest[0]) == {"name": "tiny", "label": "größe"}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_batch_stays_dynamic(in_session, tiny_cnn, size):
    images = np.random.default_rng(size).normal(size=(size, 32, 32, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tiny_cnn), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]
    np.testing.assert_allclose(in_session("tensors", images=images)["logits"], expected, atol=2e-5)


def test_a_bad_image_is_named_and_the_model_lives_on(in_session, sample_images):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1 of this batch"):
        in_session("serving_default", image_bytes=[sample_images[0], b"no image", sample_images[1]])
    assert len(in_session("serving_default", image_bytes=sample_images)["class_id"]) == len(sample_images)


def test_an_example_without_an_image_is_refused(in_session):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded"):
        in_session("examples", examples=[tf.train.Example().SerializeToString()])


def test_layer_norm_keeps_its_epsilon_under_default_settings(saved_model):
    images = np.zeros((2, 32, 32, 3), np.float32)
    ops = saving.optimized_ops(saved_model, inputs={"images": images})
    assert "_MklLayerNorm" not in ops
    assert ops["Rsqrt"] == 1


def test_multi_label_heads_answer_sigmoids(tmp_path, tiny_cnn, preprocessing, labels, sample_images):
    save(tmp_path / "m", tiny_cnn, preprocessing, labels, sample_images, head="multi_label")
    signatures = tf.saved_model.load(str(tmp_path / "m")).signatures
    answer = signatures["examples"](examples=tf.constant([as_example(image) for image in sample_images]))
    sigmoid = 1 / (1 + np.exp(-answer["logits"].numpy()))
    np.testing.assert_allclose(answer["probabilities"].numpy(), sigmoid, atol=1e-6)


def test_warm_up_requests_are_there_and_run(saved_model, loaded):
    file = saved_model / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(file))
    ]
    asked = []
    for log in logs:
        request = log.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        loaded.signatures[request.model_spec.signature_name](**inputs)
        asked.append((request.model_spec.signature_name, next(iter(inputs.values())).shape[0]))
    assert asked == [("serving_default", 1), ("tensors", 1), ("serving_default", 8), ("tensors", 8)]


def test_setting_the_manifest_changes_its_two_copies_only(saved_model):
    copies = {"assets/manifest.json", "assets.extra/manifest.json"}
    before = file_table(saved_model, exclude=copies)
    write_manifest_copies(saved_model, {"name": "tiny", "label": "größe"})
    assert file_table(saved_model, exclude=copies) == before
    for copy in copies:
        assert (saved_model / copy).read_text() == '{"label":"größe","name":"tiny"}'


def test_two_models_in_one_process_keep_their_own_assets(saved_model, tmp_path):
    import shutil

    other = shutil.copytree(saved_model, tmp_path / "other")
    write_manifest_copies(other, {"name": "other"})
    both = [tf.saved_model.load(str(path)) for path in (saved_model, other)]
    answers = [
        model.signatures["manifest"](inputs=tf.constant([""]))["manifest"].numpy()[0] for model in both
    ]
    assert [json.loads(answer)["name"] for answer in answers] == ["tiny", "other"]


def test_saved_model_cli_runs_it(saved_model, tmp_path):
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32))
    cli = str(Path(sys.executable).with_name("saved_model_cli"))
    command = [cli, "run", "--dir", str(saved_model), "--tag_set", "serve", "--signature_def", "tensors"]
    command += ["--inputs", f"images={image}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "Result for output key logits" in done.stdout


def test_what_surrounds_the_model_is_small(saved_model):
    """Signatures, preprocessing and all decoders: 5 % of a model of 1.2 million weights."""
    assert (saved_model / "saved_model.pb").stat().st_size < 250_000


SAVE_ONCE = """
import sys
from pathlib import Path
from isthmus.export.tf_half import lowering, saving
onnx, image, target = map(Path, sys.argv[1:])
saving.save(lowering.lower(onnx, rung="onnx2tf"), target=target, preprocessing={
    "input_size": [3, 32, 32], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3,
    "crop_pct": 0.9, "crop_mode": "border"}, labels=["a", "b", "c", "d"], head="single_label",
    warmup_batch_sizes=[1], sample_images=[image.read_bytes()])
"""


@pytest.mark.slow
def test_the_same_model_twice_is_the_same_files(tiny_cnn, tmp_path, sample_images):
    image = tmp_path / "image"
    image.write_bytes(sample_images[0])
    for name in ("one", "two"):
        command = [sys.executable, "-c", SAVE_ONCE, str(tiny_cnn), str(image), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stderr[-2000:]
    assert file_table(tmp_path / "one") == file_table(tmp_path / "two")


def test_a_failed_save_leaves_nothing_behind(tmp_path, tiny_cnn, preprocessing, labels, sample_images):
    with pytest.raises(ExportError, match="unknown crop_mode 'corner'"):
        save(tmp_path / "m", tiny_cnn, {**preprocessing, "crop_mode": "corner"}, labels, sample_images)
    with pytest.raises(ExportError, match=r"gives logits of shape \(None, 4\); expected \(N, 3\)"):
        save(tmp_path / "m", tiny_cnn, preprocessing, labels[:3], sample_images)
    with pytest.raises(ExportError, match="has a line break"):
        save(tmp_path / "m", tiny_cnn, preprocessing, ["a", "b", "c\nd", "e"], sample_images)
    assert list(tmp_path.iterdir()) == []
