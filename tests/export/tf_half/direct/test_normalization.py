"""Normalisation layers against ONNX Runtime, and what grappler makes of LayerNorm."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from onnx import helper
from tensorflow.python.eager import context

from isthmus.export.tf_half.direct.graph import graph_from_model
from isthmus.export.tf_half.direct.lowering import GraphFunction


def test_batch_normalization(agree, rng):
    constants = {name: rng.random(3, np.float32) + 0.5 for name in ("g", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y"], epsilon=1e-3)
    agree(node, {"x": rng.standard_normal((2, 3, 4, 5), np.float32)}, constants)
    agree(node, {"x": rng.standard_normal((2, 3), np.float32)}, constants)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_layer_normalization(agree, rng, axis, epsilon):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    constants = {name: rng.standard_normal(x.shape[axis:], np.float32) for name in ("g", "b")}
    node = helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], axis=axis, epsilon=epsilon)
    agree(node, {"x": x}, constants)
    agree(
        helper.make_node("LayerNormalization", ["x", "g"], ["y"], axis=axis), {"x": x}, {"g": constants["g"]}
    )


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 6, 7)])
def test_instance_normalization(agree, rng, shape):
    constants = {name: rng.random(6, np.float32) for name in ("g", "b")}
    node = helper.make_node("InstanceNormalization", ["x", "g", "b"], ["y"], epsilon=1e-4)
    agree(node, {"x": rng.standard_normal(shape, np.float32)}, constants)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_as_exporters_write_it(agree, rng, groups):
    constants = {
        "split": np.array([0, groups, -1]),
        "ones": np.ones(groups, np.float32),
        "zeros": np.zeros(groups, np.float32),
        "g": rng.standard_normal((6, 1, 1), np.float32),
        "b": rng.standard_normal((6, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["flat"]),
        helper.make_node("InstanceNormalization", ["flat", "ones", "zeros"], ["normal"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["normal", "shape"], ["back"]),
        helper.make_node("Mul", ["back", "g"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]),
    ]
    agree(nodes, {"x": rng.standard_normal((2, 6, 5, 4), np.float32)}, constants)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(agree, rng, opset):
    size = 2 if opset == 18 else 6
    constants = {name: rng.standard_normal(size, np.float32) for name in ("g", "b")}
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=2)
    agree(node, {"x": rng.standard_normal((2, 6, 5, 4), np.float32)}, constants, opset=opset)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(agree, rng, p):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("LpNormalization", ["x"], ["y"], axis=1, p=p), {"x": x})


def test_local_response_normalization(agree, rng):
    x = rng.standard_normal((2, 7, 4, 5), np.float32)
    agree(helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.2, beta=0.6, bias=1.5), {"x": x})


def test_mean_variance_normalization(agree, rng):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("MeanVarianceNormalization", ["x"], ["y"], axes=[2, 3]), {"x": x}, opset=13)


# How the normalised, scaled, shifted value comes from x, its mean, what is left without it, and the deviation.
ENDINGS = {
    "divided": [
        ("Div", ["centred", "deviation"], ["normal"]),
        ("Mul", ["normal", "g"], ["scaled"]),
        ("Add", ["scaled", "b"], ["y"]),
    ],
    "scale first": [
        ("Div", ["g", "deviation"], ["factor"]),
        ("Mul", ["centred", "factor"], ["scaled"]),
        ("Add", ["scaled", "b"], ["y"]),
    ],
    "mean last": [
        ("Reciprocal", ["deviation"], ["inverse"]),
        ("Mul", ["inverse", "g"], ["factor"]),
        ("Mul", ["x", "factor"], ["scaled"]),
        ("Mul", ["mean", "factor"], ["shift"]),
        ("Sub", ["b", "shift"], ["offset"]),
        ("Add", ["scaled", "offset"], ["y"]),
    ],
}


def optimised_operators(function, feed):
    """(operators of the graph as grappler left it, the answer)."""
    context.enable_run_metadata()
    try:
        answer = np.asarray(function(tf.constant(feed)))
        metadata = context.export_run_metadata()
    finally:
        context.disable_run_metadata()
    graphs = [entry.post_optimization_graph for entry in metadata.function_graphs]
    return {node.op for graph in graphs for node in graph.node}, answer


@pytest.mark.parametrize("shape", [(3, 50, 64), (3, 64), (3, 7, 7, 64)])
@pytest.mark.parametrize("form", ["LayerNormalization", "divided", "scale first", "mean last"])
def test_epsilon_survives_grappler(make_model_for, rng, shape, form):
    """TensorFlow's remapper may write _MklLayerNorm with epsilon 0.001; these inputs would show it."""
    x = (1e-3 * rng.standard_normal(shape) + rng.standard_normal((*shape[:-1], 1))).astype(np.float32)
    scale, bias = rng.random(64, np.float32) + 0.5, rng.standard_normal(64, np.float32)
    model, constants = make_model_for(form, x, scale, bias, epsilon=1e-6)
    function = GraphFunction(graph_from_model(model))
    spec = tf.TensorSpec([None, *shape[1:]], tf.float32)
    traced = tf.function(lambda t: function({"x": t})[0], input_signature=[spec], autograph=False)
    operators, answer = optimised_operators(traced, x)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias
    assert "_MklLayerNorm" not in operators, constants
    assert np.abs(answer - expected).max() < 2e-3  # float32 at this mean; epsilon 0.001 is off by more than 1


@pytest.fixture
def make_model_for():
    """A model with one LayerNorm, as one operator or as the eight that older exporters write."""
    from onnx import TensorProto, numpy_helper

    def build(form, x, scale, bias, *, epsilon):
        constants = {"g": scale, "b": bias, "two": np.float32(2), "eps": np.float32(epsilon)}
        if form == "LayerNormalization":
            nodes = [helper.make_node(form, ["x", "g", "b"], ["y"], epsilon=epsilon)]
        else:
            nodes = [
                helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
                helper.make_node("Sub", ["x", "mean"], ["centred"]),
                helper.make_node("Pow", ["centred", "two"], ["square"]),
                helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
                helper.make_node("Add", ["variance", "eps"], ["shifted"]),
                helper.make_node("Sqrt", ["shifted"], ["deviation"]),
                *[helper.make_node(op_type, inputs, outputs) for op_type, inputs, outputs in ENDINGS[form]],
            ]
        graph = helper.make_graph(
            nodes,
            "norm",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), sorted(constants)

    return build
