"""Diagnosis names the node that was broken on purpose, on both rungs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.reference import Reference
from isthmus.export.tf_half import diagnose

RNG = np.random.default_rng(0)


def net(target: Path, *, change: str | None = None) -> Path:
    """Four convolutions with Relus, a mean and a Gemm; `change` scales the weights of one node."""
    rng = np.random.default_rng(1)
    nodes, weights, value = [], [], "images"
    for i in range(4):
        kernel = rng.normal(size=(6, 3 if i == 0 else 6, 3, 3)).astype(np.float32) * 0.3
        scale = np.float32(1.05 if change == f"conv{i}" else 1.0)
        weights.append(numpy_helper.from_array(kernel * scale, f"w{i}"))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        value = f"r{i}"
    head = rng.normal(size=(6, 5)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["logits"], name="gemm"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 9, 7])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), target)
    return target


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    images = RNG.normal(size=(4, 9, 7, 3)).astype(np.float32)
    Reference(
        images=images,
        pixels=np.zeros(images.shape, np.uint8),
        logits=np.zeros((4, 5), np.float32),
        encoded=(b"",) * 4,
        labels=np.zeros(4, np.int64),
        paths=("a", "b", "c", "d"),
    ).save(tmp_path / "reference.npz")
    return {
        "onnx": str(net(tmp_path / "model.onnx")),
        "reference": str(tmp_path / "reference.npz"),
        "rows": [2, 0, 1],
        "limit": 1e-3,
    }


@pytest.mark.parametrize("rung", ["direct", "onnx2tf"])
def test_a_faithful_graph_has_no_diverging_node(rung: str, request_: dict[str, Any], tmp_path: Path) -> None:
    answer = diagnose.run(tmp_path, {**request_, "rung": rung})
    assert (answer["cause"], answer["first"]) == ("nowhere", None)
    assert answer["rows"][-1]["node"] == "gemm"
    assert all(row["error"] < 1e-4 for row in answer["rows"] if row["op_type"] == "Relu")


@pytest.mark.parametrize(("rung", "entry"), [("direct", "_direct_graph"), ("onnx2tf", "_any_graph")])
def test_the_node_that_was_broken_is_the_first(
    rung: str, entry: str, request_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, original = net(tmp_path / "broken.onnx", change="conv2"), getattr(diagnose, entry)
    monkeypatch.setattr(diagnose, entry, lambda _, *rest: original(broken, *rest))
    answer = diagnose.run(tmp_path, {**request_, "rung": rung})
    assert answer["cause"] == "lowering"
    # A Relu takes its convolution's place where the two are one step.
    assert answer["first"]["node"] in ("conv2", "relu2")
    assert answer["first"]["image"] in (0, 1, 2)
    assert answer["first"]["error"] > 1e-3


def there_and_back(target: Path) -> Path:
    """(x + 1e8) - 1e8, which float32 rounds to multiples of 8, and a mean over places."""
    far = np.array(1e8, np.float32)
    nodes = [
        helper.make_node("Mul", ["images", "hundred"], ["x"], name="enlarge"),
        helper.make_node("Add", ["x", "far"], ["away"], name="there"),
        helper.make_node("Add", ["away", "minus_far"], ["near"], name="back"),
        helper.make_node("GlobalAveragePool", ["near"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 9, 7])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.array(100, np.float32), "hundred"),
            numpy_helper.from_array(far, "far"),
            numpy_helper.from_array(-far, "minus_far"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), target)
    return target


def test_what_the_optimisers_change_is_laid_at_their_door(request_: dict[str, Any], tmp_path: Path) -> None:
    """Grappler really adds the two constants first: nothing is left to round, and so it is not the model."""
    request = {**request_, "onnx": str(there_and_back(tmp_path / "far.onnx")), "rung": "direct"}
    answer = diagnose.run(tmp_path, request)
    assert answer["cause"] == "optimisers"
    assert answer["first"]["node"] == "back"
    assert answer["first"]["error"] > 1e-3
    assert next(row["error"] for row in answer["rows"] if row["node"] == "there") <= 1e-3


def test_a_value_that_comes_right_again_is_not_where_it_went_wrong() -> None:
    def row(index: int, error: float) -> diagnose.NodeError:
        return diagnose.NodeError(
            index=index, node=str(index), op_type="Relu", output=str(index), error=error, image=0
        )

    errors = [1e-7, 5.0, 1e-7, 2e-3, float("inf"), 4e-3]
    found = diagnose.first_diverging([row(i, error) for i, error in enumerate(errors)], 1e-3)
    assert found is not None
    assert found.index == 3
    assert diagnose.first_diverging([row(0, 5.0), row(1, 1e-6)], 1e-3) is None
