"""QuantizeLinear, DequantizeLinear and QDQ models against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.tf_half.direct import lower_graph
from isthmus.export.tf_half.direct.errors import UnsupportedOperatorError


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("zero_point", [0, 3])
def test_halves_go_to_even_and_the_ends_saturate(agree, dtype, zero_point):
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], np.float32)
    halves = np.arange(-9, 10, dtype=np.float32) / 2
    x = np.concatenate([halves, 2 * ends, [1e9, -1e9]]).astype(np.float32).reshape(1, -1) * np.float32(0.25)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    constants = {"s": np.float32(0.25), "z": np.array(zero_point, dtype)}
    (steps,) = agree(node, {"x": x}, constants, opset=21)
    assert {np.iinfo(dtype).min, np.iinfo(dtype).max} <= set(steps.ravel().tolist())
    back = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])
    agree(back, {"x": steps}, constants, opset=21)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_place_of_an_axis(agree, rng, axis):
    x = (rng.standard_normal((2, 3, 4, 5)) * 20).astype(np.float32)
    places = x.shape[axis]
    constants = {
        "s": (rng.random(places) + 0.1).astype(np.float32),
        "z": rng.integers(-20, 20, places).astype(np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    agree(nodes, {"x": x}, constants, dynamic=axis != 0)


def test_without_a_zero_point_it_is_uint8_or_what_the_attribute_says(agree, rng):
    x = (rng.standard_normal((2, 6)) * 100).astype(np.float32)
    plain = helper.make_node("QuantizeLinear", ["x", "s"], ["y"])
    (steps,) = agree(plain, {"x": x}, {"s": np.float32(0.5)})
    assert steps.dtype == np.uint8
    named = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=TensorProto.INT16)
    (steps,) = agree(named, {"x": x}, {"s": np.float32(0.5)}, opset=21)
    assert steps.dtype == np.int16


def test_an_int32_bias_is_dequantised(agree, rng):
    x = rng.integers(-(2**30), 2**30, (2, 6)).astype(np.int32)
    agree(helper.make_node("DequantizeLinear", ["x", "s"], ["y"]), {"x": x}, {"s": np.float32(1e-5)})


def test_blocks_of_scales_are_refused_with_the_node(agree, rng):
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=1, block_size=2, name="blocked")
    x = rng.integers(-9, 9, (2, 4)).astype(np.int8)
    with pytest.raises(UnsupportedOperatorError, match="of node 'blocked': block_size"):
        agree(node, {"x": x}, {"s": np.ones((2, 2), np.float32)}, opset=21, dynamic=False)


class Calibration:
    """What quantize_static asks for its ranges."""

    def __init__(self, images: np.ndarray) -> None:
        self._left = iter([{"images": images[i : i + 4]} for i in range(0, len(images), 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def float_net(rng: np.random.Generator) -> onnx.ModelProto:
    """Conv, Relu, Conv, a residual Add, a mean, Gemm."""
    weights = {
        "w0": rng.normal(size=(8, 3, 3, 3)) * 0.3,
        "b0": rng.normal(size=8) * 0.1,
        "w1": rng.normal(size=(8, 8, 3, 3)) * 0.2,
        "b1": rng.normal(size=8) * 0.1,
        "w2": rng.normal(size=(5, 8)),
        "b2": rng.normal(size=5),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w0", "b0"], ["c0"], name="c0", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="r0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="c1", pads=[1] * 4),
        helper.make_node("Add", ["c1", "r0"], ["a"], name="a"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="g", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_net_that_onnx_runtimes_quantizer_wrote(tmp_path: Path, rng, per_channel) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    images = rng.normal(size=(16, 3, 16, 12)).astype(np.float32)
    onnx.save(float_net(rng), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "qdq.onnx",
        Calibration(images),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "qdq.onnx").graph.node]
    assert operators.count("QuantizeLinear") >= 5
    lowered = tf.function(
        lower_graph(tmp_path / "qdq.onnx"), input_signature=[tf.TensorSpec([None, 16, 12, 3], tf.float32)]
    )
    # Weights became float constants: what is left to cast are activations, there and back.
    kinds = [operation.type for operation in lowered.get_concrete_function().graph.get_operations()]
    assert kinds.count("Round") == operators.count("QuantizeLinear")
    have = lowered(images.transpose(0, 2, 3, 1)).numpy()
    np.testing.assert_allclose(have, run(tmp_path / "qdq.onnx", images), rtol=1e-5, atol=1e-5)
    # It is the quantised net that is carried, not the one it was made from.
    assert np.abs(have - run(tmp_path / "float.onnx", images)).max() > 1e-2


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """ONNX Runtime's answer to the file as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]
