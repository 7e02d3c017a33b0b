"""What is served is what the file said: probabilities are found wherever they stand, and cut off once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from isthmus.export import checkpoint as checkpoints
from isthmus.export import manifest as manifests
from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.elsewhere import Origin
from isthmus.export.errors import ExportError
from isthmus.export.torch_half import adopt, evaluation, foreign_onnx
from isthmus.export.torch_half.crossing import cross

FLOAT = TensorProto.FLOAT
IMAGES = np.random.default_rng(1).normal(size=(6, 4, 4, 3)).astype(np.float32)
Step = tuple[Any, ...]
"""(operator, attributes, further inputs)."""

RESHAPE: Step = ("Reshape", {}, [np.array([-1, 4], np.int64)])
#: What TF-slim's and tf2onnx's files end with: answers [n, 4, 1, 1] squeezed after the Softmax, and their kin.
ENDINGS: dict[str, tuple[list[Step], str | None]] = {
    "none": ([RESHAPE], None),
    "reshape": ([("Softmax", {"axis": 1}, []), RESHAPE], "Softmax"),
    "squeeze": ([("Softmax", {"axis": 1}, []), ("Squeeze", {}, [np.array([2, 3], np.int64)])], "Softmax"),
    "flatten": ([("Sigmoid", {}, []), ("Flatten", {"axis": 1}, [])], "Sigmoid"),
    "half": (
        [
            RESHAPE,
            ("Softmax", {"axis": -1}, []),
            ("Cast", {"to": TensorProto.FLOAT16}, []),
            ("Identity", {}, []),
            ("Cast", {"to": FLOAT}, []),
        ],
        "Softmax",
    ),
    "twice": ([RESHAPE, ("Softmax", {"axis": 1}, []), ("Softmax", {"axis": 1}, [])], "Softmax"),
    "of_sigmoid": ([RESHAPE, ("Sigmoid", {}, []), ("Softmax", {"axis": 1}, [])], "Softmax"),
}
WRITTEN_OUT: list[Step] = [
    RESHAPE,
    ("Exp", {}, []),
    ("Div", {}, ["sum"]),
]


def classifier(target: Path, steps: list[Step], *, opset: int = 17) -> Path:
    """A convolution over the whole image gives [n, 4, 1, 1]; then `steps`."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32) / 3
    stored = [numpy_helper.from_array(weight, "weight")]
    nodes = [helper.make_node("Conv", ["x", "weight"], ["v0"])]
    for i, (operator, attributes, further) in enumerate(steps):
        inputs = [f"v{i}"]
        for j, value in enumerate(further):
            if isinstance(value, str):
                axes = numpy_helper.from_array(np.array([1], np.int64), f"axes{i}")
                stored.append(axes)
                nodes.append(helper.make_node("ReduceSum", [f"v{i}", axes.name], [value], keepdims=1))
                inputs.append(value)
            else:
                stored.append(numpy_helper.from_array(value, f"c{i}_{j}"))
                inputs.append(f"c{i}_{j}")
        nodes.append(helper.make_node(operator, inputs, [f"v{i + 1}"], **attributes))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info(f"v{len(steps)}", FLOAT, ["n", 4])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    target.write_bytes(model.SerializeToString())
    return target


def adopted(folder: Path, file: Path, **origin: Any) -> Checkpoint:
    """The checkpoint that `isthmus export --onnx` makes of it."""
    request = {
        "name": "toy",
        "origin": manifests.plain(asdict(Origin(onnx=file, **origin))),
        "target": str(folder / "checkpoint"),
        "fingerprint": "0",
    }
    adopt.run(folder, request)
    return checkpoints.read(folder / "checkpoint")


def as_it_came(file: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {session.get_inputs()[0].name: IMAGES.transpose(0, 3, 1, 2).copy()})
    return np.asarray(answers).reshape(len(IMAGES), -1)


def served(logits: np.ndarray, head: str) -> np.ndarray:
    """What the signatures make of logits."""
    if head == "multi_label":
        return np.asarray(1 / (1 + np.exp(-logits)))
    return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_the_served_probabilities_are_those_of_the_file(ending: str, tmp_path: Path) -> None:
    steps, cut = ENDINGS[ending]
    file = classifier(tmp_path / "m.onnx", steps)
    checkpoint = adopted(tmp_path, file)
    assert checkpoint.origin["cut_off"] == cut
    head = checkpoint.model["head"]
    assert head == ("multi_label" if cut == "Sigmoid" else "single_label")
    done = cross(checkpoint, IMAGES, tmp_path / "model.onnx", ExportConfig(), paths=list("abcdef"))
    assert done.stage.passed, done.stage.problem
    wanted = as_it_came(file)
    if cut is None:
        np.testing.assert_allclose(done.answers, wanted, atol=1e-5)
    else:
        atol = 1e-3 if ending == "half" else 1e-6
        np.testing.assert_allclose(served(done.answers, head), wanted, atol=atol)
    # What reduced precision is judged by is the same.
    np.testing.assert_array_equal(evaluation._answers(checkpoint, IMAGES), done.answers)
    assert not {"Softmax", "Sigmoid"}.intersection(
        node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node
    ) or ending in ("twice", "of_sigmoid")


def _add_label(model: Any) -> None:
    """A label beside the probabilities, as scikit-learn's and many exports of Keras give it."""
    graph = model.graph
    stored = numpy_helper.from_array(np.ones((2, 2), np.float32), "of_the_label_only")
    graph.initializer.append(stored)
    graph.node.extend(
        [
            helper.make_node("ArgMax", ["v2"], ["label"], axis=1, keepdims=0),
            helper.make_node("MatMul", [stored.name, stored.name], ["unrelated"]),
        ]
    )
    graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))


def test_an_output_with_labels_goes_with_all_that_only_it_needs(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", [RESHAPE, ("Softmax", {"axis": 1}, [])])
    wanted = as_it_came(file)
    model = onnx.load(file)
    _add_label(model)
    onnx.save(model, file)
    checkpoint = adopted(tmp_path, file, onnx_output="v2")
    assert checkpoint.origin["cut_off"] == "Softmax"
    done = cross(checkpoint, IMAGES, tmp_path / "model.onnx", ExportConfig(), paths=list("abcdef"))
    np.testing.assert_allclose(served(done.answers, "single_label"), wanted, atol=1e-6)
    kept = onnx.load(checkpoint.weights).graph
    assert not {"ArgMax", "MatMul"}.intersection(node.op_type for node in kept.node)
    assert "of_the_label_only" not in {tensor.name for tensor in kept.initializer}


def test_what_a_graph_inside_a_node_reads_is_kept(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", [RESHAPE])
    model = onnx.load(file)
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["v1", "half"], ["inner"])],
            operator,
            [],
            [helper.make_tensor_value_info("inner", FLOAT, ["n", 4])],
        )
        for operator in ("Mul", "Add")
    ]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
            numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branches[0], else_branch=branches[1])
    )
    wanted = 0.5 * as_it_came(file)
    model.graph.output.append(helper.make_tensor_value_info("chosen", FLOAT, ["n", 4]))
    onnx.save(model, file)
    found = foreign_onnx.read(file, output="chosen")
    np.testing.assert_allclose(found.answers(IMAGES), wanted, atol=1e-5)


@pytest.mark.parametrize("head", [None, "single_label", "multi_label"])
def test_probabilities_that_cannot_be_cut_are_refused(head: str | None, tmp_path: Path) -> None:
    checkpoint = adopted(tmp_path, classifier(tmp_path / "m.onnx", WRITTEN_OUT), head=head)
    text = r"all answers of the file for the 6 reference images lie in \[0, 1\] and each sums to 1: they are prob"
    with pytest.raises(ExportError, match=text):
        cross(checkpoint, IMAGES, tmp_path / "model.onnx", ExportConfig(), paths=list("abcdef"))
    assert not (tmp_path / "model.onnx").exists()


def test_answers_between_0_and_1_are_logits_only_where_the_user_says_so(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", [RESHAPE, ("HardSigmoid", {}, [])])
    for name, head in (("unsaid", None), ("multi", "multi_label")):
        checkpoint = adopted(tmp_path / name, file, head=head)
        with pytest.raises(ExportError, match="export the model without its final sigmoid") as refused:
            cross(checkpoint, IMAGES, tmp_path / "model.onnx", ExportConfig(), paths=list("abcdef"))
        assert ("--head single_label" in str(refused.value)) == (head is None)
    checkpoint = adopted(tmp_path / "said", file, head="single_label")
    done = cross(checkpoint, IMAGES, tmp_path / "model.onnx", ExportConfig(), paths=list("abcdef"))
    np.testing.assert_allclose(done.answers, as_it_came(file), atol=1e-6)


def test_a_softmax_along_another_axis_is_refused(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", [RESHAPE, ("Softmax", {"axis": 0}, [])])
    with pytest.raises(ExportError, match="final Softmax is not over the classes: softmax of what enters it"):
        foreign_onnx.read(file)
