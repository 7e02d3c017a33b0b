"""What a refused export says about where it went wrong: lines, a JSON and a picture."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from isthmus.export.config import ExportConfig, GateConfig, Precision
from isthmus.export.diagnosis import diagnose
from isthmus.export.errors import ParityRefusedError
from isthmus.export.jobs import JobRunner
from isthmus.export.ladder import Attempt
from isthmus.export.parity import Report, failed_stage
from isthmus.export.reference import Reference
from isthmus.export.run import export

SIZE = 8
GATES = GateConfig()


def net(target: Path, *, far: float) -> Path:
    """(100 x + far) - far and a mean over places: with a large `far` TensorFlow's optimisers change the answer."""
    nodes = [
        helper.make_node("Mul", ["images", "hundred"], ["x"], name="enlarge"),
        helper.make_node("Add", ["x", "far"], ["away"], name="there"),
        helper.make_node("Add", ["away", "minus_far"], ["near"], name="back"),
        helper.make_node("GlobalAveragePool", ["near"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"),
    ]
    values = {"hundred": 100, "far": far, "minus_far": -far}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), target)
    return target


def attempt(folder: Path, rung: str, *, failed: str | None) -> Attempt:
    """A rung that failed in a stage, or (None) before it gave a graph."""
    saved_model = folder / rung / "saved_model"
    saved_model.mkdir(parents=True)
    if failed:
        (saved_model / "saved_model.pb").touch()
    stages = [failed_stage(failed, "off", gates=GATES)] if failed else []
    return Attempt(
        rung=rung,
        saved_model=saved_model,
        report=Report(gates=GATES, stages=stages),
        problem="it is off" if failed else "it does not lower",
        litert={},
        seconds=1.0,
    )


def diagnosed(
    tmp_path: Path, attempts: list[Attempt], *, far: float, precision: Precision = "fp32"
) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    Reference(
        images=(pixels / 127.5 - 1).astype(np.float32),
        pixels=pixels,
        logits=np.zeros((4, 3), np.float32),
        encoded=(b"",) * 4,
        labels=np.zeros(4, np.int64),
        paths=tuple(f"test/{i}.png" for i in range(4)),
    ).save(tmp_path / "reference.npz")
    return diagnose(
        attempts,
        runner=JobRunner(log_path=tmp_path / "log", timeout_s=300),
        folder=tmp_path / "jobs",
        onnx=net(tmp_path / "model.onnx", far=far),
        reference=tmp_path / "reference.npz",
        limit=1e-3,
        stem=tmp_path / "why",
        precision=precision,
    )


def test_the_table_the_json_and_the_picture_name_the_node(tmp_path: Path) -> None:
    attempts = [
        attempt(tmp_path, "onnx2tf", failed=None),
        attempt(tmp_path, "direct", failed="saved_model"),
    ]
    lines = diagnosed(tmp_path, attempts, far=1e8)
    assert lines[:3] == [
        "rung onnx2tf: it does not lower",
        "  it gave no graph: there is nothing to compare",
        "rung direct: it is off",
    ]
    assert lines[3].startswith("  first diverging ONNX node: back (Add), ")
    assert " standard deviations of its output on test/" in lines[3]
    assert lines[3].endswith("in what TensorFlow's optimisers make of the graph (as written it is right)")
    assert lines[4].split() == ["#", "operator", "error", "node"]
    (marked,) = [line for line in lines if line.endswith("← first beyond the limit")]
    assert marked.split()[:2] == ["2", "Add"]
    assert lines[-1] == f"  picture: {tmp_path / 'why-direct.png'}"

    answers = json.loads((tmp_path / "why.json").read_text())
    assert answers["onnx2tf"] == {"problem": "it does not lower"}
    assert answers["direct"]["cause"] == "optimisers"
    assert answers["direct"]["first"]["node"] == "back"
    assert answers["direct"]["first"]["error"] > 1e-3
    with Image.open(tmp_path / "why-direct.png") as picture:
        picture.load()
        assert picture.size[0] > picture.size[1] > 300


def test_where_the_graph_is_right_in_fp32_it_is_the_precision(tmp_path: Path) -> None:
    lines = diagnosed(tmp_path, [attempt(tmp_path, "direct", failed="precision")], far=1.0, precision="bf16")
    assert lines[1:3] == [
        "  compared in fp32, from which bf16 is made",
        "  every ONNX node's output agrees with ONNX Runtime within 1.0e-03: it is bf16 that changes the answers",
    ]


@pytest.mark.slow
def test_an_export_that_fails_is_diagnosed(
    checkpoint: Path, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image that only Pillow reads: the gates refuse it, and the graph is not to blame."""
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    odd = root / "test" / "red" / "0.png"
    data = odd.read_bytes()
    odd.write_bytes(data[: data.rindex(b"IEND") - 4])
    assert Image.open(io.BytesIO(odd.read_bytes())).convert("RGB").size[0] > 0
    config = ExportConfig(reference_images=24, rungs=("direct",))
    with (
        caplog.at_level(logging.INFO, "isthmus.export"),
        pytest.raises(
            ParityRefusedError, match=r"cannot read 1 of the 24 .*: test/red/0\.png; save them again"
        ),
    ):
        export(
            name="toy",
            checkpoint=checkpoint,
            data_root=root,
            config=config,
            home=tmp_path / "home",
            recipe={"name": "toy"},
            diagnose=True,
        )
    said = [line.strip() for line in caplog.messages]
    verdict = "every ONNX node's output agrees with ONNX Runtime within 1.0e-03: not this graph is to blame"
    assert verdict in said
    (written,) = (tmp_path / "home" / "logs").glob("export-toy-*-diagnosis.json")
    answer = json.loads(written.read_text())["direct"]
    assert (answer["cause"], answer["first"]) == ("nowhere", None)
    assert max(row["error"] for row in answer["rows"]) < 1e-3
    picture = written.with_name(f"{written.stem}-direct.png")
    assert f"picture: {picture}" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
