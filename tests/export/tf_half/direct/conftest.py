"""The oracle: a tiny ONNX graph answers the same in ONNX Runtime and after the lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.tf_half.direct.graph import graph_from_model
from isthmus.export.tf_half.direct.lowering import GraphFunction

Arrays = Mapping[str, np.ndarray]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    feeds: Arrays,
    constants: Arrays,
    outputs: Sequence[str],
    *,
    opset: int = 17,
    dynamic: bool = True,
) -> onnx.ModelProto:
    """A model whose inputs have an open first axis (unless dynamic=False), as an exporter writes it."""
    inputs = []
    for name, array in feeds.items():
        shape: list[Any] = list(array.shape)
        if dynamic and shape:
            shape[0] = "batch"
        inputs.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
        )
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    for value in graph.output:
        value.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8 if opset <= 17 else 10
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.output:  # only the element type: the shape is what is under test
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
        value.type.tensor_type.ClearField("shape")
    return inferred


def lowered(model: onnx.ModelProto, feeds: Arrays, *, channels_last: bool = False) -> list[np.ndarray]:
    """What the lowering answers, inside a tf.function; rank-4 inputs arrive channels-last when asked."""
    orders = {
        name: (0, 2, 3, 1) if channels_last and array.ndim == 4 else tuple(range(array.ndim))
        for name, array in feeds.items()
    }
    function = GraphFunction(graph_from_model(model), orders)
    open_batch = {entry.name: bool(entry.shape) and entry.shape[0] is None for entry in function.graph.inputs}
    specs = {}
    stored = {}
    for name, array in feeds.items():
        if name not in open_batch:
            continue  # an input that the graph does not use
        stored[name] = array.transpose(orders[name])
        shape = list(stored[name].shape)
        if open_batch[name]:
            shape[0] = None
        specs[name] = tf.TensorSpec(shape, array.dtype)
    traced = tf.function(function, input_signature=[specs], autograph=False)
    return [
        np.asarray(result) for result in traced({name: tf.constant(array) for name, array in stored.items()})
    ]


def reference(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """What ONNX Runtime answers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


@pytest.fixture(scope="session")
def agree() -> Callable[..., list[np.ndarray]]:
    """Assert that the lowering answers as ONNX Runtime does, inputs stored either way."""

    def check(
        nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
        feeds: Arrays,
        constants: Arrays | None = None,
        *,
        outputs: Sequence[str] = ("y",),
        opset: int = 17,
        dynamic: bool = True,
        tolerance: float = 1e-5,
    ) -> list[np.ndarray]:
        nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
        model = make_model(nodes, feeds, constants or {}, outputs, opset=opset, dynamic=dynamic)
        expected = reference(model, feeds)
        for channels_last in {False, any(array.ndim == 4 for array in feeds.values())}:
            for want, have in zip(expected, lowered(model, feeds, channels_last=channels_last), strict=True):
                assert have.shape == want.shape
                assert have.dtype == want.dtype
                np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
        return expected

    return check


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)
