"""Rewrites keep the answer (held against ONNX Runtime) and leave the operators that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.tf_half.direct.graph import graph_from_model
from isthmus.export.tf_half.direct.lowering import GraphFunction

HALF, ONE, ROOT = np.float32(0.5), np.float32(1), np.float32(math.sqrt(2))
GELUS = {
    "x * (1 + erf) * 0.5": [("Mul", ["x", "plus"], ["p"]), ("Mul", ["p", "half"], ["y"])],
    "(x * 0.5) * (1 + erf)": [("Mul", ["x", "half"], ["h"]), ("Mul", ["h", "plus"], ["y"])],
    "x * (0.5 * (1 + erf))": [("Mul", ["plus", "half"], ["p"]), ("Mul", ["x", "p"], ["y"])],
}


def operators(nodes, feeds, constants):
    """The ONNX operators that are left to emit."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *array.shape[1:]])
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return [node.op_type for node in GraphFunction(graph_from_model(model)).graph.nodes]


def hold(agree, nodes, feeds, constants, wanted):
    """Both halves of the promise."""
    agree(nodes, feeds, constants)
    assert operators(nodes, feeds, constants) == wanted


@pytest.mark.parametrize("form", GELUS)
def test_gelu(agree, rng, form):
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["plus"]),
        *[helper.make_node(*parts) for parts in GELUS[form]],
    ]
    feeds = {"x": 3 * rng.standard_normal((2, 3, 4, 5), np.float32)}
    hold(agree, nodes, feeds, {"root": ROOT, "one": ONE, "half": HALF}, ["Gelu"])


def test_almost_gelu_is_left_alone(agree, rng):
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["plus"]),
        *[helper.make_node(*parts) for parts in GELUS["x * (1 + erf) * 0.5"]],
    ]
    feeds = {"x": rng.standard_normal((2, 5), np.float32)}
    constants = {"root": np.float32(1.4), "one": ONE, "half": HALF}
    hold(agree, nodes, feeds, constants, ["Div", "Erf", "Add", "Mul", "Mul"])


def test_linear_sees_through_reshapes(agree, rng):
    """Reshape -> Gemm -> Reshape -> Gelu -> scale, as a simplifier writes a transformer's layer."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["x2"]),
        helper.make_node("Gemm", ["x2", "w", "b"], ["g"], transB=1),
        helper.make_node("Reshape", ["g", "wide"], ["z"]),
        helper.make_node("Div", ["z", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["plus"]),
        helper.make_node("Mul", ["z", "plus"], ["p"]),
        helper.make_node("Mul", ["p", "half"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["m"]),
        helper.make_node("Add", ["b2", "m"], ["l"]),
        helper.make_node("Mul", ["l", "gamma"], ["y"]),
    ]
    constants = {
        "flat": np.array([-1, 6]),
        "wide": np.array([-1, 5, 8]),
        "w": rng.standard_normal((8, 6), np.float32),
        "b": rng.standard_normal(8, np.float32),
        "w2": rng.standard_normal((8, 6), np.float32),
        "b2": rng.standard_normal(6, np.float32),
        "gamma": rng.standard_normal(6, np.float32),
        "root": ROOT,
        "one": ONE,
        "half": HALF,
    }
    hold(agree, nodes, {"x": rng.standard_normal((2, 5, 6), np.float32)}, constants, ["Linear", "Linear"])


def test_batch_norm_after_flattened_linear(agree, rng):
    """LeViT's linear layers: MatMul -> Flatten -> BatchNormalization -> Reshape."""
    constants = {
        "w": rng.standard_normal((6, 8), np.float32),
        "shape": np.array([-1, 5, 8]),
        **{name: rng.random(8, np.float32) + 0.5 for name in ("g", "b", "m", "v")},
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["l"]),
        helper.make_node("Flatten", ["l"], ["f"], axis=2),
        helper.make_node("BatchNormalization", ["f", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Reshape", ["n", "shape"], ["y"]),
    ]
    feeds = {"x": rng.standard_normal((2, 5, 6), np.float32)}
    hold(agree, nodes, feeds, constants, ["Linear", "Reshape"])


@pytest.mark.parametrize(
    ("op_type", "shape", "first"),
    [("Mul", (4, 1, 1), True), ("Add", (1, 4, 1, 1), True), ("Sub", (4, 1, 1), False), ("Div", (), True)],
)
def test_what_follows_a_convolution_goes_into_its_weights(agree, rng, op_type, shape, first):
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3), np.float32),
        "b": rng.standard_normal(4, np.float32),
        "c": np.asarray(rng.random(shape), np.float32) + HALF,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["v"]),
        helper.make_node(op_type, ["v", "c"] if first else ["c", "v"], ["y"]),
    ]
    hold(agree, nodes, {"x": rng.standard_normal((2, 3, 6, 5), np.float32)}, constants, ["Conv"])


def test_what_is_read_twice_stays(agree, rng):
    constants = {"w": rng.standard_normal((4, 3, 1, 1), np.float32), "c": np.float32(2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["v"]),
        helper.make_node("Mul", ["v", "c"], ["m"]),
        helper.make_node("Add", ["m", "v"], ["y"]),
    ]
    feeds = {"x": rng.standard_normal((2, 3, 6, 5), np.float32)}
    hold(agree, nodes, feeds, constants, ["Conv", "Mul", "Add"])


def test_broadcasts_are_not_spelled_out(agree, rng):
    """x / ||x|| as normalised attention writes it."""
    nodes = [
        helper.make_node("ReduceL2", ["x"], ["n"], axes=[-1]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Expand", ["n", "s"], ["e"]),
        helper.make_node("Div", ["x", "e"], ["y"]),
    ]
    hold(agree, nodes, {"x": rng.standard_normal((2, 5, 6), np.float32)}, {}, ["ReduceL2", "Div"])


def test_an_expand_that_matters_stays(agree, rng):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["n"], axes=[-1]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Expand", ["n", "s"], ["e"]),
        helper.make_node("Mul", ["e", "two"], ["y"]),
    ]
    feeds = {"x": rng.standard_normal((2, 5, 6), np.float32)}
    hold(agree, nodes, feeds, {"two": np.float32(2)}, ["ReduceMean", "Expand", "Mul"])


GATES = {
    # Squeeze-and-excitation as EfficientNet and as MobileNetV3 have it.
    "swish, sigmoid": [("Sigmoid", ["a"], ["s"]), ("Mul", ["a", "s"], ["h"]), ("Sigmoid", ["b"], ["g"])],
    "relu, hard sigmoid": [("Relu", ["a"], ["h"]), ("HardSigmoid", ["b"], ["g"])],
    "hard swish, hard sigmoid": [("HardSwish", ["a"], ["h"]), ("HardSigmoid", ["b"], ["g"])],
}


@pytest.mark.parametrize("form", GATES)
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_of_one_pixel_are_linear_layers(agree, rng, form, last):
    """With their activations: what is left beside them is the mean and the product."""
    *inner, gate = [helper.make_node(*parts) for parts in GATES[form]]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=1),
        helper.make_node("Conv", ["m", "w1", "b1"], ["a"], kernel_shape=[1, 1]),
        *inner,
        helper.make_node("Conv", ["h", "w2", "b2"], ["b"], kernel_shape=[1, 1]),
        gate,
        helper.make_node("Mul", ["g", "x"] if last else ["x", "g"], ["y"]),
    ]
    feeds = {"x": 20 * rng.standard_normal((3, 8, 5, 4), np.float32)}
    constants = {
        "w1": rng.standard_normal((2, 8, 1, 1), np.float32),
        "b1": rng.standard_normal(2, np.float32),
        "w2": rng.standard_normal((8, 2, 1, 1), np.float32),
        "b2": rng.standard_normal(8, np.float32),
    }
    hold(agree, nodes, feeds, constants, ["ReduceMean", "PointLinear", "PointLinear", "Mul"])


def test_swish_after_a_convolution_stays_outside_for_grappler_to_fuse(agree, rng):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["s", "a"], ["y"]),
    ]
    feeds = {"x": rng.standard_normal((2, 3, 5, 4), np.float32)}
    hold(agree, nodes, feeds, {"w": rng.standard_normal((4, 3, 1, 1), np.float32)}, ["Conv", "Silu"])


def test_a_gate_of_something_else_is_no_swish(agree, rng):
    nodes = [
        helper.make_node("Sigmoid", ["z"], ["s"]),
        helper.make_node("Mul", ["s", "x"], ["p"]),
        helper.make_node("HardSigmoid", ["p"], ["h"], alpha=0.3),
        helper.make_node("Mul", ["h", "p"], ["y"]),
    ]
    feeds = {name: rng.standard_normal((2, 3), np.float32) for name in ("x", "z")}
    hold(agree, nodes, feeds, {}, ["Sigmoid", "Mul", "HardSigmoid", "Mul"])
