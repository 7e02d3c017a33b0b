"""Two exporters: the second is tried where the first refuses the model or writes another one, and it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from isthmus.export import checkpoint as checkpoints
from isthmus.export.config import ExportConfig
from isthmus.export.torch_half.crossing import Crossing, cross

#: CSATv2, shallow: TorchScript does not see the size of what its spatial attention pools.
SMALL_CSATV2 = {"depths": [1, 1, 1, 1], "transformer_depths": [0, 0, 1, 1]}


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)


def carried(checkpoint: Path, target: Path, *, size: int, **config: str) -> Crossing:
    given = images(size)
    return cross(
        checkpoints.read(checkpoint), given, target, ExportConfig(**config), paths=[str(i) for i in range(4)]
    )


def test_dynamo_carries_what_torchscript_refuses(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    made = make_checkpoint(model="csatv2", args=SMALL_CSATV2)
    done = carried(made, tmp_path / "model.onnx", size=64)
    assert done.stage.passed, done.stage.problem
    assert (done.facts["exporter"], done.facts["opset"]) == ("dynamo", 18)
    first, second = done.facts["exporters_tried"]
    assert (first["exporter"], first["passed"]) == ("torchscript", False)
    assert "adaptive_avg_pool2d" in first["error"]
    assert second == {"exporter": "dynamo", "opset": 18, "passed": True, "error": None}
    graph = onnx.load(tmp_path / "model.onnx").graph
    # An operator that does not cross is to be found in timm's modules by its node's name.
    assert any(node.name.startswith("/stages.0.0.") for node in graph.node), [n.name for n in graph.node][:9]
    assert not graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["model.onnx"]


def test_the_configured_exporter_is_first_and_enough(checkpoint: Path, tmp_path: Path) -> None:
    done = carried(checkpoint, tmp_path / "model.onnx", size=32, exporter="dynamo")
    assert done.stage.passed, done.stage.problem
    assert [attempt["exporter"] for attempt in done.facts["exporters_tried"]] == ["dynamo"]


def test_dynamo_writes_the_same_bytes_twice(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        carried(checkpoint, tmp_path / name, size=32, exporter="dynamo")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_where_neither_passes_the_nearest_file_is_kept_and_both_are_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    known = checkpoints.read(checkpoint)
    config = ExportConfig()
    # Nothing in float32 is this near.
    config.gates.logit_error = 1e-12
    done = cross(known, images(32), tmp_path / "model.onnx", config, paths=list("abcd"))
    assert not done.stage.passed
    assert [attempt["passed"] for attempt in done.facts["exporters_tried"]] == [False, False]
    assert all("limit 1.0e-12" in attempt["error"] for attempt in done.facts["exporters_tried"])
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["model.onnx"]
