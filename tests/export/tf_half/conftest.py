"""What the tests of the TF half share: timm's rules in Pillow, and a tiny classifier as ONNX, made without
torch."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

PREPROCESSING = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.875,
    "crop_mode": "center",
}
LABELS = ["ant", "bee", "größe", "snail"]


@pytest.fixture(scope="session")
def timm_rules() -> ModuleType:
    """tests/export/timm_rules.py."""
    path = Path(__file__).parent.parent / "timm_rules.py"
    spec = importlib.util.spec_from_file_location("timm_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def preprocessing() -> dict:
    """The evaluation transform of the tiny classifier."""
    return dict(PREPROCESSING)


@pytest.fixture(scope="session")
def labels() -> list[str]:
    """Labels of the tiny classifier."""
    return list(LABELS)


@pytest.fixture(scope="session")
def sample_images() -> list[bytes]:
    """Eight small PNG and JPEG files."""
    generator = np.random.default_rng(0)
    encoded = []
    for index in range(8):
        height, width = generator.integers(20, 60, 2)
        buffer = io.BytesIO()
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG" if index % 2 else "PNG")
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture(scope="session")
def tiny_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Convs, a reshape to tokens of computed shape, LayerNormalization (1e-6), Gemm; 32 × 32, four classes."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx.save(_tiny_cnn(), path)
    return path


def _tiny_cnn() -> onnx.ModelProto:
    generator = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((generator.normal(size=shape) * 0.3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[4, 4]),
        # Tokens [N, 16, 8], as a transformer's patch embedding does it, with a target computed from shapes.
        helper.make_node("Shape", ["c2"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["head"]),
        helper.make_node("Concat", ["head", "minus_one"], ["target"], axis=0),
        helper.make_node("Reshape", ["c2", "target"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "g", "b"], ["normed"], axis=-1, epsilon=1e-6),
        helper.make_node("ReduceMean", ["normed"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w3", "b3"], ["logits"], transB=1),
    ]
    initializers = [
        weight("w1", 6, 3, 3, 3),
        weight("b1", 6),
        # Small activations: with epsilon 0.001 instead of 1e-6 the layer norm is far off.
        numpy_helper.from_array((generator.normal(size=(8, 6, 4, 4)) * 1e-3).astype(np.float32), "w2"),
        numpy_helper.from_array(np.zeros(8, np.float32), "b2"),
        weight("g", 8),
        weight("b", 8),
        weight("w3", 4, 8),
        weight("b3", 4),
        *(
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("zero", 0), ("two", 2), ("minus_one", -1))
        ),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "tiny", [images], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
