"""Models trained elsewhere become checkpoints: once, complete, and saying what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.export import checkpoint as checkpoints
from isthmus.export import external_data
from isthmus.export.elsewhere import Origin, adopt, reference_images
from isthmus.export.errors import ExportError
from isthmus.export.photographs import NUM_WINDOWS, SOURCE, folder_of_windows
from isthmus.lineage.files import sha256_file


def take(origin: Origin, home: Path, **changes: Any) -> Path:
    return adopt(origin, **{"name": "toy", "home": home, "timeout_s": 300.0, **changes})


def test_a_missing_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--weights .*nowhere\.pth is not a file"):
        take(Origin(architecture="resnet10t", weights=tmp_path / "nowhere.pth"), tmp_path)
    with pytest.raises(ExportError, match=r"--images .*nowhere is not a folder"):
        reference_images(tmp_path / "nowhere", home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_windows_of_photographs_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (folder_of_windows(tmp_path / name) for name in ("a", "b"))
    files = sorted(path.name for path in first.glob("*.png"))
    assert len(files) == NUM_WINDOWS
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert folder_of_windows(tmp_path / "a") == first
    assert reference_images(None, home=tmp_path / "a").source == SOURCE


@pytest.mark.slow
def test_weights_of_a_timm_model_become_a_checkpoint_once(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("north\neast\nsouth\nwest\n")
    origin = Origin(
        architecture="resnet10t",
        weights=checkpoint / "model.safetensors",
        labels=tmp_path / "names.txt",
        preprocessing={"input_size": (3, 32, 32), "crop_pct": 1.0},
    )
    made = take(origin, tmp_path)
    adopted = checkpoints.read(made)
    adopted.check_weights()
    assert adopted.model["labels"] == ["north", "east", "south", "west"]
    assert (adopted.preprocessing["input_size"], adopted.preprocessing["crop_pct"]) == ([3, 32, 32], 1.0)
    assert adopted.origin["kind"] == "timm"
    assert adopted.record["dataset"]["digest"] is None
    assert take(origin, tmp_path) == made
    with pytest.raises(ExportError, match=r"names\.txt has 4 names.*the model has 1000 classes"):
        take(
            Origin(architecture="resnet10t", onnx=None, weights=_thousand(tmp_path), labels=origin.labels),
            tmp_path,
        )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            {"in_chans": 1},
            r"Requested 3 input channels, but the model accepts 1\. Images are RGB",
        ),
        ({"num_classes": 0}, r"resnet10t has no classifier \(0 classes\)"),
        ({"features_only": True}, r"resnet10t has no classifier \(a FeatureListNet\)"),
    ],
)
def test_what_timms_arguments_make_no_rgb_classifier_of_is_one_clear_line(
    args: dict[str, Any], text: str, checkpoint: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(checkpoint / "model.safetensors")
    if "in_chans" in args:
        state["conv1.0.weight"] = state["conv1.0.weight"][:, :1].copy()
    else:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ExportError, match=text):
        take(Origin(architecture="resnet10t", weights=tmp_path / "weights.safetensors", args=args), tmp_path)


def onnx_classifier(file: Path, *, weights: str | None, scale: float = 1.0) -> Path:
    """A convolution and a product; its weights in the file, in one other, or (weights "") in one for each."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    stored = {
        "filters": scale * rng.normal(size=(5, 3, 4, 4)).astype(np.float32),
        "head": rng.normal(size=(5, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.parent.mkdir(exist_ok=True)
    for old in file.parent.iterdir():
        old.unlink()
    onnx.save_model(
        model,
        file,
        save_as_external_data=weights is not None,
        all_tensors_to_one_file=bool(weights),
        location=weights or None,
        size_threshold=0,
    )
    return file


def answer(adopted: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(adopted / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    return np.asarray(session.run(None, {"x": images})[0])


@pytest.mark.parametrize("weights", ["weights.bin", ""])
def test_weights_in_other_files_are_read_and_new_ones_are_another_model(weights: str, tmp_path: Path) -> None:
    # A name that means something to glob.
    file = tmp_path / "given" / "net[1].onnx"
    written = onnx_classifier(file, weights=None)
    alone = take(Origin(onnx=written), tmp_path / "alone")
    first = take(Origin(onnx=onnx_classifier(file, weights=weights)), tmp_path / "home")
    graph = file.read_bytes()
    assert len(list(file.parent.iterdir())) == (2 if weights else 3)
    # What adoption writes is whole, and the same model.
    np.testing.assert_array_equal(answer(first), answer(alone))
    assert take(Origin(onnx=file), tmp_path / "home") == first
    onnx_classifier(file, weights=weights, scale=2.0)
    assert file.read_bytes() == graph
    second = take(Origin(onnx=file), tmp_path / "home")
    assert second != first
    np.testing.assert_allclose(answer(second), 2 * answer(first), rtol=1e-5)


def test_files_outside_the_folder_are_not_opened(tmp_path: Path) -> None:
    import onnx

    file = onnx_classifier(tmp_path / "given" / "net.onnx", weights="weights.bin")
    (tmp_path / "secret").write_bytes(b"no weights")
    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    file.write_bytes(model.SerializeToString())
    found = external_data.digests(file)
    assert found == {"../secret": None, "weights.bin": sha256_file(tmp_path / "given" / "weights.bin")}
    file.write_bytes(b"no model")
    assert external_data.digests(file) == {}


def _thousand(folder: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet10t").state_dict(), folder / "thousand.safetensors")
    return folder / "thousand.safetensors"
