"""Matrix products against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 4, 5), (2, 5, 3)),
        ((2, 3, 4, 5), (5, 6)),
        ((2, 3, 4, 5), (3, 5, 6)),
        ((4, 5), (5, 6)),
        ((2, 4, 5), (5,)),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_mat_mul(agree, rng, left, right, constant):
    a, b = rng.standard_normal(left, np.float32), rng.standard_normal(right, np.float32)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    if constant:
        agree(node, {"a": a}, {"b": b}, dynamic=len(right) < 3 or right[0] != left[0])
    else:
        agree(node, {"a": a, "b": b}, dynamic=False)


def test_constant_on_the_left(agree, rng):
    a, b = rng.standard_normal((6, 4), np.float32), rng.standard_normal((2, 4, 5), np.float32)
    agree(helper.make_node("MatMul", ["a", "b"], ["y"]), {"b": b}, {"a": a})


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), ()])
def test_gemm(agree, rng, attributes, bias):
    b = rng.standard_normal((6, 5) if attributes.get("transB") else (5, 6), np.float32)
    constants = {"b": b}
    if bias is not None:
        constants["c"] = np.asarray(rng.standard_normal(bias), np.float32)
    node = helper.make_node("Gemm", ["a", *constants], ["y"], **attributes)
    agree(node, {"a": rng.standard_normal((3, 5), np.float32)}, constants)


def test_gemm_of_tensors(agree, rng):
    feeds = {name: rng.standard_normal((4, 4), np.float32) for name in "abc"}
    agree(helper.make_node("Gemm", ["a", "b", "c"], ["y"], transA=1, transB=1), feeds, dynamic=False)
    feeds["c"] = feeds["c"][:1]
    agree(helper.make_node("Gemm", ["a", "b", "c"], ["y"], transA=1), feeds, dynamic=False)


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhij", "bhij,bhjd -> bhid", "bhid,bhid->bhd"])
def test_einsum(agree, rng, equation):
    shapes = {"b": 2, "h": 3, "i": 4, "j": 4, "d": 4}
    terms = equation.replace(" ", "").split("->")[0].split(",")
    feeds = {
        f"x{k}": rng.standard_normal([shapes[c] for c in term], np.float32) for k, term in enumerate(terms)
    }
    agree(helper.make_node("Einsum", list(feeds), ["y"], equation=equation), feeds)


def test_attention_block(agree, rng):
    """Softmax(q k^T) v with the heads split and joined as vision transformers write it."""
    tokens, heads, width = 5, 3, 12
    constants = {
        "w": rng.standard_normal((width, 3 * width), np.float32),
        "b": rng.standard_normal(3 * width, np.float32),
        "split": np.array([0, tokens, 3, heads, width // heads]),
        "join": np.array([0, tokens, width]),
        "scale": np.float32(0.5),
        **{f"i{k}": np.int64(k) for k in range(3)},
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["b", "xw"], ["xwb"]),
        helper.make_node("Reshape", ["xwb", "split"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[2, 0, 3, 1, 4]),
        *[helper.make_node("Gather", ["t", f"i{k}"], [f"p{k}"], axis=0) for k in range(3)],
        helper.make_node("Transpose", ["p1"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("Mul", ["p0", "scale"], ["q"]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "p2"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["mt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["mt", "join"], ["y"]),
    ]
    agree(nodes, {"x": rng.standard_normal((2, tokens, width), np.float32)}, constants)


def test_scaled_dot_product_attention(agree, rng):
    feeds = {name: rng.standard_normal((2, 3, 5, 4), np.float32) for name in "qkv"}
    agree(helper.make_node("Attention", ["q", "k", "v"], ["y"]), feeds, opset=23)
