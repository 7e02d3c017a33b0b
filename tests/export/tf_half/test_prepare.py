"""Folding shape arithmetic: the same function of the pixels, at any batch, with fewer nodes."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.tf_half import prepare


def model_of(nodes: list, initializers: dict[str, np.ndarray], out_shape: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def operators(model: onnx.ModelProto) -> collections.Counter:
    return collections.Counter(node.op_type for node in model.graph.node)


def assert_same_function(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    onnx.checker.check_model(folded, full_check=True)
    for size in (1, 2, 4, 7):
        images = np.random.default_rng(size).normal(size=(size, 3, 4, 4)).astype(np.float32)
        results = [
            onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"images": images}
            )[0]
            for m in (model, folded)
        ]
        np.testing.assert_array_equal(*results)


INTS = {
    name: np.array([value], np.int64)
    for name, value in (("zero", 0), ("one", 1), ("minus", -1), ("three", 3))
}


def test_a_computed_reshape_becomes_a_constant_with_one_inferred_entry():
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "three"], ["n3"]),
        helper.make_node("Concat", ["n3", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["images", "target"], ["out"]),
    ]
    model = model_of(nodes, INTS, ["m", 16])
    folded = prepare.fold_shapes(model)
    assert operators(folded) == {"Reshape": 1}
    (target,) = (numpy_helper.to_array(t).tolist() for t in folded.graph.initializer)
    assert target == [-1, 16]
    assert_same_function(model, folded)


def test_a_token_expanded_to_the_batch_keeps_its_expand_and_computes_the_batch_only():
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "three", "one", "one"], ["target"], axis=0),
        helper.make_node("Expand", ["token", "target"], ["tokens"]),
        helper.make_node("Add", ["images", "tokens"], ["out"]),
    ]
    token = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    model = model_of(nodes, {**INTS, "token": token}, ["batch", 3, 4, 4])
    folded = prepare.fold_shapes(model)
    assert operators(folded)["Expand"] == 1
    assert_same_function(model, folded)


def test_constants_that_hang_on_the_image_size_only_are_folded():
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "three"], ["width"]),
        helper.make_node("Cast", ["width"], ["width_float"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["width_float"], ["scale"]),
        helper.make_node("Div", ["images", "scale"], ["out"]),
    ]
    model = model_of(nodes, INTS, ["batch", 3, 4, 4])
    folded = prepare.fold_shapes(model)
    assert operators(folded) == {"Div": 1}
    assert_same_function(model, folded)


def test_what_depends_on_pixels_is_left_alone():
    nodes = [
        helper.make_node("ArgMax", ["images"], ["best"], axis=1, keepdims=1),
        helper.make_node("Cast", ["best"], ["out"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {}, ["batch", 1, 4, 4])
    assert prepare.fold_shapes(model) is model


def test_the_input_model_is_not_changed(tiny_cnn):
    model = onnx.load(tiny_cnn)
    before = model.SerializeToString(deterministic=True)
    folded = prepare.fold_shapes(model)
    assert model.SerializeToString(deterministic=True) == before
    assert "Shape" in operators(model)
    assert "Shape" not in operators(folded)
