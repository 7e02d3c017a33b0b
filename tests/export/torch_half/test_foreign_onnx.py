"""ONNX files that came from elsewhere: every form that is taken, and the one line for every form that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.errors import ExportError
from isthmus.export.torch_half import foreign_onnx
from isthmus.export.torch_half.foreign_form import normalized

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 6, 4, 3)).astype(np.float32)


def classifier(
    target: Path,
    *,
    batch: int | str = "n",
    layout: str = "NCHW",
    end: str | None = None,
    size: tuple[Any, Any] = (6, 4),
    change: Callable[[Any], None] = lambda _: None,
) -> Path:
    """Conv → Reshape to [batch or -1, 40] → Gemm to 3 classes; input `logits`, to be awkward."""
    weight = RNG.normal(size=(5, 3, 3, 3)).astype(np.float32)
    head = RNG.normal(size=(5 * 8, 3)).astype(np.float32)
    rows = batch if isinstance(batch, int) else -1
    nodes, image = [], "logits"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["logits"], ["nchw"], perm=[0, 3, 1, 2]))
        image = "nchw"
    nodes += [
        helper.make_node("Conv", [image, "weight"], ["maps"]),
        helper.make_node("Reshape", ["maps", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["images"]),
    ]
    if end:
        nodes.append(helper.make_node(end, ["images"], ["answer"]))
    dims = [batch, 3, *size] if layout == "NCHW" else [batch, *size, 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("logits", FLOAT, dims)],
        [helper.make_tensor_value_info("answer" if end else "images", FLOAT, [batch, 3])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array([rows, 40], np.int64), "target"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("end", [None, "Softmax", "Sigmoid"])
def test_every_layout_batch_and_ending_becomes_one_form(
    layout: str, batch: int | str, end: str | None, tmp_path: Path
) -> None:
    found = foreign_onnx.read(classifier(tmp_path / "m.onnx", batch=batch, layout=layout, end=end))
    assert (found.layout, found.input_size, found.num_classes) == (layout, (3, 6, 4), 3)
    assert found.head == ("multi_label" if end == "Sigmoid" else "single_label")
    answers = found.answers(IMAGES)
    assert answers.shape == (5, 3)
    if end == "Softmax":
        assert answers.min() < 0
    model = normalized(found, images=IMAGES, reference=answers)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    nchw = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
    for size in (1, 4):
        (got,) = session.run(["logits"], {"images": nchw[:size]})
        np.testing.assert_allclose(got, answers[:size], rtol=1e-5, atol=1e-5)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_open_height_and_width_need_a_size(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", size=("h", "w"))
    with pytest.raises(ExportError, match=r"leaves height and width open .*--set model\.input_size="):
        foreign_onnx.read(file)
    assert foreign_onnx.read(file, input_size=[3, 6, 4]).input_size == (3, 6, 4)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run the graph on \[2, 3, 9, 9\]"):
        foreign_onnx.read(file, input_size=[3, 9, 9])


@pytest.mark.parametrize("open_size", [-1, 0])
def test_sizes_of_minus_one_and_zero_are_open_ones(open_size: int, tmp_path: Path) -> None:
    def write_as_size(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_value = open_size

    file = classifier(tmp_path / "m.onnx", size=("h", "w"), change=write_as_size)
    with pytest.raises(ExportError, match=r"leaves height and width open .*--set model\.input_size="):
        foreign_onnx.read(file)
    found = foreign_onnx.read(file, input_size=[3, 6, 4])
    assert (found.input_size, found.batch) == ((3, 6, 4), None)
    answers = found.answers(IMAGES)
    session = onnxruntime.InferenceSession(
        normalized(found, images=IMAGES, reference=answers).SerializeToString()
    )
    (got,) = session.run(["logits"], {"images": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(got, answers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", [None, "Softmax"])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_float16_and_float64_files_are_cast_at_both_ends(kind: Any, end: str | None, tmp_path: Path) -> None:
    plain = classifier(tmp_path / "m.onnx", end=end)
    model = onnx.load(plain)
    if kind is np.float64:
        # ONNX Runtime has no convolution in float64: only the ends are.
        first, last = model.graph.node[0], model.graph.node[-1]
        answer, last.output[0] = last.output[0], "narrow_answer"
        first.input[0] = "narrow_image"
        model.graph.node.insert(0, helper.make_node("Cast", ["logits"], ["narrow_image"], to=FLOAT))
        model.graph.node.append(helper.make_node("Cast", ["narrow_answer"], [answer], to=TensorProto.DOUBLE))
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT and kind is np.float16:
            value = numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    onnx.save(model, tmp_path / "other.onnx")
    wanted = foreign_onnx.read(plain).answers(IMAGES)
    found = foreign_onnx.read(tmp_path / "other.onnx")
    assert found.facts["cut_off"] == end
    answers = found.answers(IMAGES)
    atol = (2e-2 if kind is np.float16 else 1e-5) * np.abs(wanted).max()
    np.testing.assert_allclose(answers, wanted, atol=atol)
    made = normalized(found, images=IMAGES, reference=answers)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    assert {session.get_inputs()[0].type, session.get_outputs()[0].type} == {"tensor(float)"}
    (got,) = session.run(["logits"], {"images": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(got, answers, atol=atol)


@pytest.mark.parametrize("shape", [[-1, 3, 1, 1], [-1, 1, 1, 3]])
def test_answers_of_a_convolution_are_flattened(shape: list[int], tmp_path: Path) -> None:
    def unflatten(model: Any) -> None:
        model.graph.node[-1].output[0] = "flat_answer"
        model.graph.node.append(helper.make_node("Reshape", ["flat_answer", "maps_of_one"], ["images"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "maps_of_one"))
        dims = ["n", *shape[1:]]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("images", FLOAT, dims))

    found = foreign_onnx.read(classifier(tmp_path / "m.onnx", change=unflatten))
    assert (found.num_classes, found.answers(IMAGES).shape) == (3, (5, 3))


def _foreign_domain(model: Any) -> None:
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].name = "first"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def _second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, [1]))


def _second_output(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("maps", FLOAT, ["n", 5, 4, 2]))


def _only_maps(model: Any) -> None:
    _second_output(model)
    del model.graph.output[0]


def _uint8(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def _grey(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def _outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_foreign_domain, r"node 'first' is operator Conv of domain 'com\.example'; only ONNX's own"),
        (_second_input, r"has 2 inputs \(logits, mask\); exactly one image input"),
        (_second_output, r"has 2 outputs \(images, maps\); say which with --onnx-output NAME"),
        (_only_maps, r"answers float32 \[2, 5, 4, 2\] for 2 images; float32 logits \[N, C\] are wanted"),
        (_uint8, r"input 'logits' is uint8; preprocessed float32 \(or float16, float64\) images are wanted"),
        (_grey, r"input 'logits' is \['n', 1, 6, 4\]; \[N, 3, H, W\] or \[N, H, W, 3\] is wanted"),
        (_outside, r"keeps weights in other files, which cannot be read: "),
    ],
)
def test_what_is_no_image_classifier_is_one_clear_line(change: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text) as caught:
        foreign_onnx.read(classifier(tmp_path / "m.onnx", change=change))
    assert "\n" not in str(caught.value)


def test_one_of_several_outputs_is_taken_by_name(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m.onnx", change=_second_output)
    assert foreign_onnx.read(file, output="images").num_classes == 3
    with pytest.raises(ExportError, match="has no output 'other'; it has images, maps"):
        foreign_onnx.read(file, output="other")


def test_corrupt_files_are_one_clear_line(tmp_path: Path) -> None:
    whole = classifier(tmp_path / "m.onnx").read_bytes()
    for name, data in (("empty", b""), ("text", b"not a model"), ("half", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            ExportError, match=rf"{name} is not (an ONNX model, or a damaged one|a valid ONNX)"
        ):
            foreign_onnx.read(tmp_path / name)


def test_a_batch_built_into_the_graph_is_refused(tmp_path: Path) -> None:
    def add_rows(model: Any) -> None:
        rows = numpy_helper.from_array(RNG.normal(size=(2, 3)).astype(np.float32), "rows")
        model.graph.initializer.append(rows)
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Add", ["before", "rows"], ["images"]))

    found = foreign_onnx.read(classifier(tmp_path / "m.onnx", batch=2, change=add_rows))
    with pytest.raises(ExportError, match="made for a fixed batch of 2, which is built into its graph"):
        normalized(found, images=IMAGES, reference=found.answers(IMAGES))
