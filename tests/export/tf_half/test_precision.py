"""bf16 and int8 in the graph, by both rungs, and model.tflite: what runs in which type, and how near it stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.config import Precision
from isthmus.export.errors import ExportError
from isthmus.export.parity import logit_error
from isthmus.export.reduced import Evaluation
from isthmus.export.tf_half import integers, litert, lowering, precision, saving
from isthmus.export.tf_half.litert_runtime import LiteRt

SIZE, NUM_CLASSES = 32, 4
INPUT_SIZE = [3, SIZE, SIZE]
#: How far the model below may be from fp32, in units of parity: its softmax leaves little between images.
NEAR = {"fp32": 1e-3, "bf16": 0.3, "int8": 1.0}


@pytest.fixture(scope="module")
def padded_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual CNN whose maximum pooling is padded, and with an attention-like MatMul of two activations."""
    random = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan_in = int(np.prod(shape[1:]))
        return numpy_helper.from_array((random.normal(size=shape) / fan_in**0.5).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("Add", ["c2", "p1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["hidden"], transB=1),
        helper.make_node("Softmax", ["hidden"], ["soft"], axis=-1),
        helper.make_node("Gemm", ["soft", "w4", "b4"], ["logits"], transB=1),
    ]
    shapes = [("w1", 16, 3, 3, 3), ("b1", 16), ("w2", 16, 16, 3, 3), ("b2", 16), ("w3", 12, 16), ("b3", 12)]
    initializers = [
        weight(name, *shape) for name, *shape in [*shapes, ("w4", NUM_CLASSES, 12), ("b4", NUM_CLASSES)]
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", NUM_CLASSES])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path_factory.mktemp("onnx") / "padded.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def images() -> Evaluation:
    """24 images with some structure; they calibrate, and they are what is compared on."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return Evaluation(
        pixels=coarse.astype(np.uint8),
        logits=np.zeros((24, 0), np.float32),
        labels=np.full(24, -1),
        paths=tuple(str(i) for i in range(24)),
        split="val",
        mean=np.full(3, 0.5, np.float32),
        std=np.full(3, 0.25, np.float32),
    )


def traced(logits_fn: precision.LogitsFn) -> Any:
    spec = tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="images")
    return tf.function(logits_fn, input_signature=[spec], autograph=False).get_concrete_function()


def constant_bytes(function: Any) -> int:
    return sum(
        len(node.attr["value"].tensor.tensor_content)
        for node in function.graph.as_graph_def().node
        if node.op == "Const"
    )


@pytest.mark.parametrize("rung", lowering.RUNGS)
@pytest.mark.parametrize("wanted", ["bf16", "int8"])
def test_products_are_reduced_and_the_rest_is_not(
    padded_cnn: Path, images: Evaluation, rung: lowering.Rung, wanted: Precision
) -> None:
    full = lowering.lower(padded_cnn, rung=rung)
    reduced = precision.reduced(full, precision=wanted, input_size=INPUT_SIZE, calibration=images)
    before, after = traced(full), traced(reduced)
    assert (after.inputs[0].dtype, after.outputs[0].dtype) == (tf.float32, tf.float32)
    assert constant_bytes(after) < constant_bytes(before) * (0.65 if wanted == "bf16" else 0.5)
    batch = tf.constant(images.images(slice(None)))
    reference, candidate = before(batch), after(batch)
    (reference,), (candidate,) = (tf.nest.flatten(answer) for answer in (reference, candidate))
    error = logit_error(reference.numpy(), candidate.numpy())
    assert 1e-5 < error < NEAR[wanted]
    kinds = Counter(
        (operation.type, operation.outputs[0].dtype.name)
        for operation in after.graph.get_operations()
        if operation.type in {"Conv2D", "MatMul", "Softmax", "QuantizedConv2DWithBias"}
    )
    assert kinds["Softmax", "float32"] == 1
    if wanted == "bf16":
        assert sum(count for (kind, dtype), count in kinds.items() if dtype == "bfloat16") == 3
        # The classifier stays whole.
        assert (
            sum(count for (kind, dtype), count in kinds.items() if kind != "Softmax" and dtype == "float32")
            == 1
        )
    else:
        assert kinds["QuantizedConv2DWithBias", "qint32"] >= 2


@pytest.mark.parametrize("wanted", ["bf16", "int8"])
def test_what_is_saved_computes_in_it_under_default_settings(
    padded_cnn: Path,
    images: Evaluation,
    wanted: Precision,
    sample_images: list[bytes],
    preprocessing: dict[str, Any],
    labels: list[str],
    tmp_path: Path,
) -> None:
    reduced = precision.reduced(
        lowering.lower(padded_cnn, rung="direct"),
        precision=wanted,
        input_size=INPUT_SIZE,
        calibration=images,
    )
    saving.save(
        reduced,
        target=tmp_path / "saved_model",
        preprocessing=preprocessing,
        labels=labels,
        head="single_label",
        warmup_batch_sizes=(1,),
        sample_images=sample_images,
    )
    batch = images.images(slice(3))
    operators = saving.optimized_ops(tmp_path / "saved_model", inputs={"images": batch})
    if wanted == "int8":
        assert operators["_MklQuantizedConv2DWithBias"] >= 2
    loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
    signature = loaded.signatures["tensors"]
    assert signature.structured_input_signature[1]["images"].dtype == tf.float32
    logits = signature(images=tf.constant(batch))["logits"]
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(sample_images))
    np.testing.assert_allclose(answer["probabilities"].numpy().sum(axis=1), 1, atol=1e-5)


def test_attention_s_own_products_and_shapes_pass_through(tiny_cnn: Path, images: Evaluation) -> None:
    full = lowering.lower(tiny_cnn, rung="direct")
    half = traced(precision.reduced(full, precision="bf16", input_size=INPUT_SIZE))
    for size in (1, 3, 8):
        (answer,) = tf.nest.flatten(half(tf.constant(images.images(slice(size)))))
        assert answer.shape == (size, NUM_CLASSES)
    # The layer norm of activations of 1e-3 stays float32: mean, variance, root.
    kinds = Counter((o.type, o.outputs[0].dtype.name) for o in half.graph.get_operations() if o.outputs)
    assert not [kind for kind in kinds if kind[0] in {"Mean", "Rsqrt"} and kind[1] == "bfloat16"]


def test_a_model_without_products_is_refused_for_int8(images: Evaluation) -> None:
    def mean(batch: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(batch, axis=[1, 2])

    with pytest.raises(ExportError, match="int8: the model has no convolution or matrix product"):
        precision.reduced(mean, precision="int8", input_size=INPUT_SIZE, calibration=images)


def test_the_range_of_an_activation_leaves_a_far_outlier_out() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    near = integers._best_range(values, 4.0, is_signed=True)
    far = integers._best_range(values, 12.0, is_signed=True)
    assert far.largest < 12.0
    assert near.scale == near.largest / 127
    assert integers._best_range(np.abs(values), 4.0, is_signed=False).scale < near.scale
    assert integers._best_range(np.zeros(4, np.float32), 0.0, is_signed=False).largest == 1.0


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "int8"])
def test_tflite_answers_in_any_batch_near_fp32(
    padded_cnn: Path, images: Evaluation, wanted: Precision, tmp_path: Path
) -> None:
    full = lowering.lower(padded_cnn, rung="direct")
    facts = litert.convert(
        full, tmp_path / "model.tflite", input_size=INPUT_SIZE, precision=wanted, calibration=images
    )
    assert facts["batch"] == "dynamic"
    assert facts["bytes"] == (tmp_path / "model.tflite").stat().st_size
    batch = images.images(slice(None))
    (reference,) = tf.nest.flatten(traced(full)(tf.constant(batch)))
    runtime = LiteRt(tmp_path / "model.tflite")
    assert runtime.is_dynamic
    for size in (1, 3, 8):
        answers = np.concatenate([runtime.logits(batch[i : i + size]) for i in range(0, len(batch), size)])
        assert logit_error(reference.numpy(), answers) < NEAR[wanted]


def test_tflite_refuses_in_one_line(tmp_path: Path) -> None:
    def fft(batch: tf.Tensor) -> tf.Tensor:
        return tf.math.real(tf.signal.fft3d(tf.cast(batch, tf.complex64)))[:, 0, 0, :]

    with pytest.raises(ExportError, match=r"^LiteRT cannot hold this model: .*FFT3D") as caught:
        litert.convert(fft, tmp_path / "model.tflite", input_size=INPUT_SIZE, precision="fp32")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.tflite").exists()
