"""The bridge's form of an ONNX file that came from elsewhere: `images` [batch, 3, H, W] → `logits` [batch, C]."""

from __future__ import annotations

from typing import Any

import numpy as np

from isthmus.export.errors import ExportError
from isthmus.export.torch_half.foreign_batch import free_batch
from isthmus.export.torch_half.foreign_onnx import ForeignModel, open_session, run_session
from isthmus.export.torch_half.onnx_model import INPUT_NAME, OUTPUT_NAME


def normalized(found: ForeignModel, *, images: np.ndarray, reference: np.ndarray) -> Any:
    """The model in the bridge's form: `images` [batch, 3, H, W] → `logits` [batch, C], onnx.ModelProto.

    Args:
        found: From `read`.
        images: float32 NHWC, at least two.
        reference: Their logits from `found.answers`.

    Raises:
        ExportError: The file's fixed batch is built into its graph.
    """
    import onnx
    from onnx import helper

    proto = onnx.ModelProto()
    proto.CopyFrom(found.proto)
    graph = proto.graph
    inside = f"{found.input_name}_as_it_came"
    for node in graph.node:
        node.input[:] = [inside if name == found.input_name else name for name in node.input]
    order = [0, 1, 2, 3] if found.layout == "NCHW" else [0, 2, 3, 1]
    entry = "Transpose" if found.layout == "NHWC" else "Identity"
    attributes = {"perm": order} if entry == "Transpose" else {}
    graph.node.insert(0, helper.make_node(entry, [INPUT_NAME], [inside], name="isthmus_layout", **attributes))
    answered = f"{graph.output[0].name}"
    graph.node.append(helper.make_node("Flatten", [answered], [OUTPUT_NAME], name="isthmus_logits", axis=1))
    _rename_collisions(graph)
    sizes = list(found.input_size)
    kept = [value for value in graph.input if value.name != found.input_name]
    del graph.input[:]
    graph.input.extend(
        [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["batch", *sizes]), *kept]
    )
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["batch", found.num_classes])
    )
    del graph.value_info[:]
    if found.batch is not None:
        free_batch(proto, found.batch)
    _check_batches(proto, found, images, reference)
    return proto


def _rename_collisions(graph: Any) -> None:
    """The file may use our two names for values of its own: ours stay at the ends."""
    first, last = graph.node[0], graph.node[-1]
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                ours = (node is first and name == INPUT_NAME) or (node is last and name == OUTPUT_NAME)
                own_output = names is node.output
                if name == OUTPUT_NAME and not (ours and own_output):
                    names[place] = f"{OUTPUT_NAME}_inside"
                elif name == INPUT_NAME and not ours:
                    names[place] = f"{INPUT_NAME}_inside"
    for tensor in graph.initializer:
        if tensor.name in (INPUT_NAME, OUTPUT_NAME):
            tensor.name = f"{tensor.name}_inside"


def _check_batches(proto: Any, found: ForeignModel, images: np.ndarray, reference: np.ndarray) -> None:
    """Whether the graph answers the same at other batch sizes than its own."""
    if found.batch is None:
        return
    nchw = np.ascontiguousarray(images[:3].transpose(0, 3, 1, 2), dtype=np.float32)
    scale = float(np.abs(reference).max()) or 1.0
    for size in range(1, len(nchw) + 1):
        try:
            answer = run_session(open_session(proto), INPUT_NAME, nchw[:size])
            same = answer.shape == reference[:size].shape
            problem = (
                "" if same and np.abs(answer - reference[:size]).max() <= 1e-3 * scale else "other numbers"
            )
        except ExportError as error:
            problem = str(error)
        if problem:
            raise ExportError(
                f"the file was made for a fixed batch of {found.batch}, which is built into its graph (at batch "
                f"{size}: {problem}); export it with a dynamic batch axis"
            )
