"""Element-wise operators and broadcasting against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper


@pytest.mark.parametrize(
    "op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less", "GreaterOrEqual"]
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 1), (5,), (), (1, 3, 1, 1), (4, 5)])
def test_broadcast_with_constants(agree, rng, op_type, shape):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    c = np.asarray(rng.standard_normal(shape), np.float32)
    agree(helper.make_node(op_type, ["x", "c"], ["y"]), {"x": x}, {"c": c}, dynamic=shape[:1] != (2,))
    agree(helper.make_node(op_type, ["c", "x"], ["y"]), {"x": x}, {"c": c}, dynamic=shape[:1] != (2,))


def test_broadcast_of_different_ranks(agree, rng):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=0),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Mul", ["x", "m"], ["a"]),
        helper.make_node("Mul", ["m", "x"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "t"], ["y"]),
    ]
    agree(nodes, {"x": rng.standard_normal((2, 3, 4, 4), np.float32)})


@pytest.mark.parametrize(
    "op_type",
    [
        "Abs",
        "Atan",
        "Ceil",
        "Cos",
        "Erf",
        "Exp",
        "Floor",
        "Neg",
        "Reciprocal",
        "Round",
        "Sign",
        "Sin",
        "Tanh",
    ],
)
def test_unary(agree, rng, op_type):
    agree(helper.make_node(op_type, ["x"], ["y"]), {"x": 3 * rng.standard_normal((2, 3, 4, 5), np.float32)})


@pytest.mark.parametrize("op_type", ["Sqrt", "Log"])
def test_unary_positive(agree, rng, op_type):
    agree(helper.make_node(op_type, ["x"], ["y"]), {"x": rng.random((2, 3, 4, 5), np.float32) + 0.1})


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_pow(agree, rng, exponent):
    x = rng.random((2, 3, 4, 5), np.float32) + 0.5
    agree(helper.make_node("Pow", ["x", "e"], ["y"]), {"x": x}, {"e": np.float32(exponent)})


def test_integer_division_truncates(agree):
    x = np.array([[-7, 7, -8, 9]], np.int64)
    agree(helper.make_node("Div", ["x", "c"], ["y"]), {"x": x}, {"c": np.int64(2)})


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(agree, fmod):
    x = np.array([[-7, 7, -8, 9]], np.int64)
    agree(
        helper.make_node("Mod", ["x", "c"], ["y"], fmod=fmod),
        {"x": x},
        {"c": np.array([3, -4, 5, -2], np.int64)},
    )


@pytest.mark.parametrize("op_type", ["Max", "Min", "Sum", "Mean"])
def test_variadic(agree, rng, op_type):
    feeds = {name: rng.standard_normal((2, 3, 4, 5), np.float32) for name in "abc"}
    agree(helper.make_node(op_type, list(feeds), ["y"]), feeds)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0, 6), (None, 1), (0.2, None), (0, np.inf)])
def test_clip(agree, rng, low, high):
    constants = {name: np.float32(v) for name, v in (("low", low), ("high", high)) if v is not None}
    inputs = ["x", "low" if low is not None else "", "high" if high is not None else ""]
    x = 4 * rng.standard_normal((2, 3, 4, 5), np.float32)
    agree(helper.make_node("Clip", inputs, ["y"]), {"x": x}, constants)


def test_clip_attributes(agree, rng):
    x = 4 * rng.standard_normal((2, 3), np.float32)
    agree(helper.make_node("Clip", ["x"], ["y"], min=-1.0, max=2.0), {"x": x}, opset=9)


@pytest.mark.parametrize("to", [TensorProto.INT64, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.DOUBLE])
def test_cast(agree, rng, to):
    agree(
        helper.make_node("Cast", ["x"], ["y"], to=to),
        {"x": 3 * rng.standard_normal((2, 3, 4, 5), np.float32)},
    )


def test_where_and_logic(agree, rng):
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Less", ["x", "one"], ["small"]),
        helper.make_node("And", ["positive", "small"], ["both"]),
        helper.make_node("Not", ["both"], ["other"]),
        helper.make_node("Where", ["other", "x", "c"], ["y"]),
    ]
    x, c = rng.standard_normal((2, 3, 4, 5), np.float32), rng.standard_normal((3, 1, 1), np.float32)
    agree(nodes, {"x": x}, {"zero": np.float32(0), "one": np.float32(1), "c": c})
