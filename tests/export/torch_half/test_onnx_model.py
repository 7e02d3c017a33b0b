"""model.onnx: the same model, at any batch, the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from isthmus.export.config import ExportConfig
from isthmus.export.errors import ExportError
from isthmus.export.parity import StageResult
from isthmus.export.reference import Reference
from isthmus.export.torch_half import __main__ as torch_half
from isthmus.export.torch_half.onnx_model import write_onnx
from isthmus.export.torch_half.runtime import measure
from isthmus.lineage.files import sha256_file, write_json


def request(checkpoint: Path, data_root: Path, bundle: Path, **changes: Any) -> dict[str, Any]:
    bundle.mkdir(parents=True)
    config = asdict(ExportConfig(**{"reference_images": 16, **changes}))
    return {
        "checkpoint": str(checkpoint),
        "data_root": str(data_root),
        "bundle": str(bundle),
        "config": config,
    }


@pytest.fixture(scope="module")
def done(
    checkpoint: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("job")
    return folder, torch_half.run(folder, request(checkpoint, data_root, folder / "bundle"))


def test_onnx_runtime_agrees_with_torch_at_every_batch(done: tuple[Path, dict[str, Any]]) -> None:
    stage = StageResult(**done[1]["stage"])
    assert stage.passed, stage.problem
    assert stage.error is not None
    assert stage.error < 1e-4
    assert [row["what"] for row in stage.measurements] == ["batch 1", "batch 3", "batch 16"]


def test_the_graph_has_one_image_input_and_a_dynamic_batch(done: tuple[Path, dict[str, Any]]) -> None:
    graph = onnx.load(done[0] / "bundle" / "model.onnx")
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    (images,), (logits,) = graph.graph.input, graph.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    dims = images.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [3, 32, 32]
    assert dims[0].dim_param == "batch"
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


def test_the_reference_holds_what_the_stages_need(done: tuple[Path, dict[str, Any]], data_root: Path) -> None:
    reference = Reference.load(done[0] / "bundle" / "reference.npz")
    assert len(reference) == 16
    assert reference.logits.shape == (16, 4)
    assert set(reference.labels.tolist()) == {0, 1, 2, 3}
    for data, name in zip(reference.encoded, reference.paths, strict=True):
        assert data == (data_root / name).read_bytes()


def test_another_process_writes_the_same_bytes(
    done: tuple[Path, dict[str, Any]], checkpoint: Path, data_root: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job"
    job.mkdir()
    write_json(job / "request.json", request(checkpoint, data_root, tmp_path / "bundle"))
    subprocess.run(
        [sys.executable, "-m", "isthmus.export.torch_half", str(job)],
        check=True,
        timeout=120,
        capture_output=True,
    )
    for name in ("model.onnx", "reference.npz"):
        assert sha256_file(tmp_path / "bundle" / name) == sha256_file(done[0] / "bundle" / name)


def test_nothing_of_this_machine_is_in_the_file(done: tuple[Path, dict[str, Any]]) -> None:
    data = (done[0] / "bundle" / "model.onnx").read_bytes()
    assert b".py" not in data
    assert str(Path.cwd()).encode() not in data


class Unsupported(torch.nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images).mean(dim=(2, 3))


def test_an_operator_that_does_not_cross_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    example = np.zeros((2, 8, 8, 3), np.float32)
    with pytest.raises(
        ExportError, match=r"torchscript exporter \(opset 17\) refused the model: .*bessel_j0"
    ):
        write_onnx(Unsupported(), example, tmp_path / "model.onnx", exporter="torchscript", opset=17)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"ONNX Runtime .* refused the model"):
        measure(tmp_path / "model.onnx", np.zeros((2, 8, 8, 3), np.float32))


class Clipped(torch.nn.Module):
    """Projections of the same tensor, each clipped to limits of its own, as timm's Gemma 4 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = torch.nn.ModuleList(torch.nn.Linear(3, 4) for _ in range(3))
        for number in range(3):
            self.register_buffer(f"low_{number}", torch.tensor(-0.1 * number))
            self.register_buffer(f"high_{number}", torch.tensor(0.1 + 0.1 * number))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = images.mean((2, 3)) * 2
        answers = [
            layer(torch.clamp(pooled, self.get_buffer(f"low_{number}"), self.get_buffer(f"high_{number}")))
            for number, layer in enumerate(self.projections)
        ]
        return answers[0] + answers[1] + answers[2]


def test_dynamo_keeps_the_limits_of_what_is_clipped_twice(tmp_path: Path) -> None:
    model, example = Clipped().eval(), np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    write_onnx(model, example, tmp_path / "model.onnx", exporter="dynamo", opset=18)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"images": np.ascontiguousarray(example.transpose(0, 3, 1, 2))}
    )
    with torch.inference_mode():
        expected = model(torch.from_numpy(example.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class Split(torch.nn.Module):
    """Pieces of a tensor, equal ones and not, as timm's halonet and bat_resnext have them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = torch.split(images, [1, 2], dim=1)
        columns = torch.cat(torch.split(second, 3, dim=3), dim=1)[:, :, :, :2]
        return torch.cat([first.mean((2, 3)), columns.mean((2, 3))], dim=1)


def test_dynamos_sequences_become_tensors(tmp_path: Path) -> None:
    example = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
    write_onnx(Split().eval(), example, tmp_path / "model.onnx", exporter="dynamo", opset=18)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Split" in kinds
    assert not {kind for kind in kinds if "Sequence" in kind or kind == "CastLike"}
    nchw = np.ascontiguousarray(example.transpose(0, 3, 1, 2))
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": nchw})
    np.testing.assert_allclose(logits, Split()(torch.from_numpy(nchw)).numpy(), atol=1e-6)
