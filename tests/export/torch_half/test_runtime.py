"""ONNX Runtime's own optimisers may be wrong; then the file is judged as it is written, and the stage says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.config import GateConfig
from isthmus.export.errors import ExportError
from isthmus.export.parity import StageResult
from isthmus.export.torch_half import runtime

IMAGES = np.random.default_rng(0).normal(-0.5, 1, (5, 8, 8, 3)).astype(np.float32)


def net(target: Path) -> Path:
    """A zero Pad before a MaxPool, as in timm's BiT stem."""
    nodes = [
        helper.make_node("Pad", ["images", "pads"], ["padded"], name="pad"),
        helper.make_node("MaxPool", ["padded"], ["pooled"], name="pool", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["pooled"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), target)
    return target


def true_logits(images: np.ndarray) -> np.ndarray:
    """The same in numpy."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.stack([padded[:, y : y + 7 : 2, x : x + 7 : 2] for y in range(3) for x in range(3)])
    return windows.max(axis=0).mean(axis=(1, 2))


def judge(file: Path, reference: np.ndarray) -> StageResult:
    return runtime.judge(
        file, IMAGES, reference, gates=GateConfig(), head="single_label", paths=[str(i) for i in range(5)]
    )


def test_a_wrong_optimiser_is_gone_around_and_named(tmp_path: Path) -> None:
    stage = judge(net(tmp_path / "model.onnx"), true_logits(IMAGES))
    assert stage.passed, stage.problem
    assert stage.note is not None
    assert "right only at ONNX Runtime's optimisation level ORT_DISABLE_ALL" in stage.note
    assert "ORT_ENABLE_ALL: " in stage.note
    assert "limit 1.0e-03, worst on" in stage.note
    assert stage.note in stage.line()


def test_a_file_that_is_another_model_fails_at_every_level(tmp_path: Path) -> None:
    stage = judge(net(tmp_path / "model.onnx"), 2 * true_logits(IMAGES))
    assert not stage.passed
    assert stage.note == "no lower optimisation level of ONNX Runtime passes either"


def test_what_the_default_level_gets_right_needs_no_note(tmp_path: Path) -> None:
    file = net(tmp_path / "model.onnx")
    model = onnx.load(file)
    del model.graph.node[0]
    model.graph.node[0].input[0] = "images"
    onnx.save(model, file)
    windows = np.stack([IMAGES[:, y : y + 5 : 2, x : x + 5 : 2] for y in range(3) for x in range(3)])
    stage = judge(file, windows.max(axis=0).mean(axis=(1, 2)))
    assert (stage.passed, stage.note) == (True, None)


def test_what_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"ONNX Runtime [\d.]+ refused the model: "):
        judge(tmp_path / "model.onnx", true_logits(IMAGES))
