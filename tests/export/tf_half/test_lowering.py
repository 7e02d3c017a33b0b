"""The rungs on a tiny classifier, and what they say about a model that they do not carry."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper

from isthmus.export.errors import ExportError
from isthmus.export.tf_half import lowering, onnx2tf_rung


@pytest.mark.parametrize("rung", lowering.RUNGS)
@pytest.mark.parametrize("size", [1, 3])
def test_each_rung_gives_the_same_logits_as_onnx_runtime(tiny_cnn, rung, size):
    images = np.random.default_rng(size).normal(size=(size, 32, 32, 3)).astype(np.float32)
    logits = tf.function(lowering.lower(tiny_cnn, rung=rung), autograph=False)(tf.constant(images))
    session = onnxruntime.InferenceSession(str(tiny_cnn), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]
    np.testing.assert_allclose(logits.numpy(), expected, atol=2e-5)


def test_onnx2tf_leaves_the_file_the_folder_and_the_generators_as_they_were(tiny_cnn):
    before = {path.name: path.read_bytes() for path in tiny_cnn.parent.iterdir()}
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    lowering.lower(tiny_cnn, rung="onnx2tf")
    assert (random.random(), np.random.random()) == expected
    assert sys.getrecursionlimit() < 10_000  # onnx2tf lifts it to 2^31
    assert {path.name: path.read_bytes() for path in tiny_cnn.parent.iterdir()} == before


def test_the_layer_norm_is_spelled_out_because_the_fused_one_is_wrong(tiny_cnn, monkeypatch):
    """Without it TensorFlow's optimiser fuses, with epsilon 0.001: the other tests would notice."""
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tiny_cnn), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]

    def error() -> float:
        function = tf.function(lowering.lower(tiny_cnn, rung="onnx2tf"), autograph=False)
        return float(np.abs(function(tf.constant(images)).numpy() - expected).max())

    assert error() < 2e-5
    monkeypatch.setattr(onnx2tf_rung, "_spell_out_squared_differences", lambda _graph: None)
    assert error() > 0.05


def broken(tmp_path: Path) -> Path:
    nodes = [helper.make_node("GridSample", ["images", "grid"], ["logits"], name="/sample/the_node")]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, ["batch", 8, 8, 2]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 8, 8])],
    )
    path = tmp_path / "broken.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_model_of_another_form_is_refused(tmp_path):
    with pytest.raises(ExportError, match="onnx2tf"):
        lowering.lower(broken(tmp_path), rung="onnx2tf")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ExportError, match=re.escape(f"{tmp_path / 'no.onnx'} is not a file")):
        lowering.lower(tmp_path / "no.onnx", rung="onnx2tf")


def test_an_unknown_rung(tiny_cnn):
    with pytest.raises(ExportError, match="unknown rung 'ladder'; one of onnx2tf, direct"):
        lowering.lower(tiny_cnn, rung="ladder")


def grouped_cnn(path: Path) -> Path:
    """Convolutions with groups, each with a bias and an activation: what ResNeXt is made of."""
    rng = np.random.default_rng(0)
    weights = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 4, 3, 3), "c": (8,), "head": (8, 4)}
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["x"], pads=[1, 1, 1, 1], name="/stem"),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Conv", ["r", "v", "c"], ["y"], pads=[1, 1, 1, 1], group=2, name="/grouped"),
        helper.make_node("Relu", ["y"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "grouped",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def test_grouped_convolutions_run_where_onednn_does_not(tmp_path):
    """On x86 without AVX512-VNNI TensorFlow uses kernels of its own, whose fused convolution refuses groups."""
    model = grouped_cnn(tmp_path / "grouped.onnx")
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": images.transpose(0, 3, 1, 2)})[0]
    program = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        import tensorflow as tf
        from isthmus.export.tf_half import lowering
        folder = Path(sys.argv[1])
        for rung in lowering.RUNGS:
            logits = tf.function(lowering.lower(folder / "grouped.onnx", rung=rung), autograph=False)
            np.save(folder / f"{rung}.npy", logits(tf.constant(np.load(folder / "images.npy"))))
    """
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rung in lowering.RUNGS:
        np.testing.assert_allclose(np.load(tmp_path / f"{rung}.npy"), expected, rtol=1e-4, atol=1e-4)
