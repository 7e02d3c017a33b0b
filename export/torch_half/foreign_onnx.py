"""ONNX files that came from elsewhere: read without trusting them, and brought into the bridge's form.

Nothing of such a file is executed: it is parsed, its operators must be ONNX's own, and ONNX Runtime computes
them. `read` gives the model as it came (only inlined, float32 at both ends, its logits the one output): the
reference's answers are computed from that. foreign_form.py makes of it what crosses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.errors import ExportError
from isthmus.export.torch_half.foreign_ending import check_cut, choose_output, cut_probabilities

#: ONNX's own operators; everything else is a library of somebody's.
_DOMAINS = frozenset({"", "ai.onnx"})
_LARGEST_BYTES = 2**31 - 2**27
_CHANNELS = 3


@dataclass(kw_only=True, frozen=True)
class ForeignModel:
    """An ONNX classifier as it came."""

    proto: Any
    """onnx.ModelProto; its one output holds the logits."""

    input_name: str
    """The image input."""

    layout: str
    """"NCHW" or "NHWC"."""

    input_size: tuple[int, int, int]
    """[C, H, W], whatever the layout."""

    batch: int | None
    """None where the file's batch is dynamic already."""

    num_classes: int
    """C of the logits."""

    head: str
    """"single_label", or "multi_label" where the graph ended with a Sigmoid."""

    notes: tuple[str, ...]
    """Lines for the user."""

    facts: dict[str, Any]
    """For the record: producer, opset, what was cut off."""

    def save(self, target: Path) -> None:
        """Write the model as one file."""
        target.write_bytes(self.proto.SerializeToString(deterministic=True))

    def answers(self, images: np.ndarray) -> np.ndarray:
        """ONNX Runtime's logits float32 [N, C] for NHWC images, in the batch size that the file was made for."""
        size = self.batch or min(len(images), 8)
        session = open_session(self.proto)
        rows = []
        for start in range(0, len(images), size):
            chosen = [(start + i) % len(images) for i in range(size)]
            rows.append(
                run_session(session, self.input_name, self._laid_out(images[chosen]))[: len(images) - start]
            )
        return np.concatenate(rows).reshape(len(images), -1).astype(np.float32)

    def _laid_out(self, images: np.ndarray) -> np.ndarray:
        nhwc = np.ascontiguousarray(images, dtype=np.float32)
        return nhwc if self.layout == "NHWC" else np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))


def read(
    file: Path, *, output: str | None = None, input_size: list[int] | None = None, cut: bool = True
) -> ForeignModel:
    """Read an image classifier.

    Args:
        file: The ONNX file; weights may lie in other files of its folder.
        output: Name of the output with the logits; None: the only one.
        input_size: [3, H, W] for a file that leaves height and width open.
        cut: Whether a final Softmax or Sigmoid goes. Not from a file that `save` wrote: what it still ends with
            is part of its logits.

    Raises:
        ExportError: Not an ONNX file, damaged, operators that are not ONNX's own, another interface than one
            RGB image input of floats and logits [N, C]; the text names what was found.
    """
    proto = _parse(file)
    _check_operators(proto, file)
    proto = _checked(_inlined(proto), file)
    _open_dims(proto.graph)
    image = _image_input(proto, file)
    dims = [_dim(dim) for dim in image.type.tensor_type.shape.dim]
    layout, size = _layout(dims, input_size, image.name, file)
    batch = dims[0] if isinstance(dims[0], int) else None
    _set_size(image, layout, size)
    choose_output(proto, output, file)
    kinds = _float32_ends(proto, image)
    notes = [
        f"{file}: {layout} images {list(size)}, opset {_opset(proto)}, by {proto.producer_name or 'unknown'}"
    ]
    if kinds:
        notes.append(f"{' and '.join(kinds)}: cast from and to float32 at the ends")
    found = ForeignModel(
        proto=proto,
        input_name=image.name,
        layout=layout,
        input_size=size,
        batch=batch,
        num_classes=0,
        head="single_label",
        notes=tuple(notes),
        facts={
            "producer": proto.producer_name,
            "opset": _opset(proto),
            "cut_off": None,
            "layout": layout,
            "fixed_batch": batch,
        },
    )
    return _with_logits(found, file, cut=cut)


def _parse(file: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    size = file.stat().st_size
    if size > _LARGEST_BYTES:
        raise ExportError(f"{file} has {size / 2**30:.1f} GiB; the bridge carries models up to 1.9 GiB")
    try:
        proto = onnx.ModelProto.FromString(file.read_bytes())
    except DecodeError:
        proto = None
    if proto is None or not proto.graph.node or not proto.opset_import:
        raise ExportError(f"{file} is not an ONNX model, or a damaged one ({size:,} bytes)")
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(file.parent.resolve()))
    except Exception as error:
        raise ExportError(
            f"{file} keeps weights in other files, which cannot be read: {_line(error)}"
        ) from error
    return proto


def _check_operators(proto: Any, file: Path) -> None:
    own = {(function.domain, function.name) for function in proto.functions}
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    for node in (node for nodes in bodies for node in _all_nodes(nodes)):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise ExportError(
                f"{file}: node {node.name or node.output[0]!r} is operator {node.op_type} of domain "
                f"{node.domain!r}; only ONNX's own operators cross the bridge: export the model without it"
            )


def _all_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from _all_nodes(graph.node)


def _inlined(proto: Any) -> Any:
    """Functions of the file's own, written out."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _checked(proto: Any, file: Path) -> Any:
    import onnx

    try:
        onnx.checker.check_model(proto)
        return proto
    except Exception as error:
        raise ExportError(f"{file} is not a valid ONNX model: {_line(error)}") from error


def _image_input(proto: Any, file: Path) -> Any:
    import onnx

    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ExportError(
            f"{file} has {len(inputs)} inputs ({names}); exactly one image input crosses the bridge"
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in (onnx.TensorProto.FLOAT, *_wider_and_narrower()):
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ExportError(
            f"{file}: input {inputs[0].name!r} is {kind}; preprocessed float32 (or float16, float64) images "
            "are wanted: export it in float32 and without its own preprocessing"
        )
    return inputs[0]


def _wider_and_narrower() -> tuple[int, ...]:
    """What a Cast to or from float32 stands for without a loss that the file itself would not have."""
    import onnx

    return (onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def _float32_ends(proto: Any, image: Any) -> list[str]:
    """Cast where the image input or the output is float16 or float64; returns what was cast."""
    import onnx
    from onnx import helper

    graph, said = proto.graph, []
    entry, end = image.type.tensor_type, graph.output[0]
    if entry.elem_type in _wider_and_narrower():
        said.append(f"{onnx.TensorProto.DataType.Name(entry.elem_type).lower()} images")
        inside = f"{image.name}_as_its_type"
        for node in graph.node:
            node.input[:] = [inside if name == image.name else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", [image.name], [inside], to=entry.elem_type))
        entry.elem_type = onnx.TensorProto.FLOAT
    if end.type.tensor_type.elem_type in _wider_and_narrower():
        said.append(f"{onnx.TensorProto.DataType.Name(end.type.tensor_type.elem_type).lower()} answers")
        name = f"{end.name}_float32"
        graph.node.append(helper.make_node("Cast", [end.name], [name], to=onnx.TensorProto.FLOAT))
        end.name, end.type.tensor_type.elem_type = name, onnx.TensorProto.FLOAT
    return said


def _open_dims(graph: Any) -> None:
    """Sizes of -1 and 0 are how some exporters write an open one."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.ClearField("dim_value")


def _dim(dim: Any) -> int | str:
    return int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or "?")


def _layout(
    dims: list[int | str], wanted: list[int] | None, name: str, file: Path
) -> tuple[str, tuple[int, int, int]]:
    """("NCHW" or "NHWC", [3, H, W])."""
    layout = None
    if len(dims) == 4:
        layout = "NCHW" if dims[1] == _CHANNELS else "NHWC" if dims[3] == _CHANNELS else None
    if layout is None:
        raise ExportError(
            f"{file}: input {name!r} is {dims}; [N, 3, H, W] or [N, H, W, 3] is wanted (RGB images)"
        )
    edges: list[int | None] = [*wanted[1:]] if wanted else [None, None]
    places = (2, 3) if layout == "NCHW" else (1, 2)
    size = []
    for place, given in zip(places, edges, strict=True):
        dim = dims[place]
        if not isinstance(dim, int) and given is None:
            raise ExportError(
                f"{file} leaves height and width open ({dims}); say which: --set model.input_size=[3,224,224]"
            )
        if isinstance(dim, int) and given is not None and dim != given:
            raise ExportError(f"{file} takes images of {dims}; the input size given is {wanted}")
        size.append(dim if isinstance(dim, int) else int(given or 0))
    return layout, (_CHANNELS, size[0], size[1])


def _set_size(image: Any, layout: str, size: tuple[int, int, int]) -> None:
    dims = image.type.tensor_type.shape.dim
    for place, value in zip((1, 2, 3), size if layout == "NCHW" else (*size[1:], size[0]), strict=True):
        dims[place].dim_value = value


def _with_logits(found: ForeignModel, file: Path, *, cut: bool) -> ForeignModel:
    """Cut probabilities off, and run it: the answer's shape is what it is, not what the file says."""
    answers = _try(found, file)
    ended_with = cut_probabilities(found.proto) if cut else None
    notes = found.notes
    if ended_with:
        try:
            check_cut(ended_with, answers, _try(found, file))
        except ExportError as error:
            raise ExportError(f"{file}: {error}") from error
        notes += (
            f"the graph ends with {ended_with}; the signatures do that themselves, so logits are what precedes it",
        )
    return replace(
        found,
        num_classes=int(answers.shape[1]),
        head="multi_label" if ended_with == "Sigmoid" else "single_label",
        notes=notes,
        facts={**found.facts, "cut_off": ended_with},
    )


def _try(found: ForeignModel, file: Path) -> np.ndarray:
    """Answers [N, C] to noise; raises ExportError where they are no classifier's."""
    num = found.batch or 2
    shape = (num, *found.input_size[1:], found.input_size[0])
    noise = np.random.default_rng(0).normal(size=shape)
    try:
        answer = run_session(open_session(found.proto), found.input_name, found._laid_out(noise))
    except ExportError as error:
        raise ExportError(f"{file}: {error}") from error
    # [N, C], or [N, C, 1, 1] and [N, 1, 1, C] of a head that is a convolution.
    classes = max(answer.shape[1:], default=0)
    flat = answer.ndim >= 2 and answer.shape[0] == num and answer.size == num * classes
    if not flat or answer.dtype != np.float32:
        raise ExportError(
            f"{file} answers {answer.dtype} {list(answer.shape)} for {num} images; float32 logits [N, C] are "
            "wanted (a classifier, no detection or segmentation heads)"
        )
    return answer.reshape(num, -1)


def open_session(proto: Any) -> Any:
    """ONNX Runtime on the CPU, for an onnx.ModelProto; raises ExportError where it refuses.

    Without its graph optimisers: what the file says is the reference, and they have been wrong (runtime.py).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(f"ONNX Runtime refuses the graph: {_line(error)}") from error


def run_session(session: Any, name: str, batch: np.ndarray) -> np.ndarray:
    """The first output for one batch; raises ExportError where ONNX Runtime cannot compute it."""
    try:
        return np.asarray(session.run(None, {name: batch})[0])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the graph on {list(batch.shape)}: {_line(error)}"
        ) from error


def _opset(proto: Any) -> int:
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in _DOMAINS), 0)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
