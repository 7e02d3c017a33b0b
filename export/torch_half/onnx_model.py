"""Writing `model.onnx`: torch's two exporters, and the interface that the bridge holds every graph to."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.export.errors import ExportError
from isthmus.export.torch_half.model import to_nchw

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

# Where dynamo notes the modules that a node came from.
_SCOPES = "pkg.torch.onnx.name_scopes"

# Larger results of constant folding stay computed: a folded position table may outweigh the model.
_FOLD_AT_MOST = "10MB"
_PROTOBUF_LIMIT_BYTES = 2**31 - 2**27


def write_onnx(
    model: torch.nn.Module, example_nhwc: np.ndarray, target: Path, *, exporter: str, opset: int
) -> dict[str, Any]:
    """Export `images` float32 [batch, 3, H, W] → `logits` float32 [batch, C], the batch dynamic.

    Args:
        model: In eval mode, exportable.
        example_nhwc: float32 [N ≥ 2, H, W, 3]; with one image the tracer would take the batch for a constant.
        target: The file to write.
        exporter: "torchscript" or "dynamo".
        opset: ONNX operator set version.

    Returns:
        {"simplified": whether onnxsim's form is the one written, "nodes": number of nodes, "attention": whether two
        computed matrices are multiplied}.

    Raises:
        ExportError: The exporter refuses the model; the text names the operator.
    """
    import onnx
    import torch

    assert len(example_nhwc) >= 2
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > _PROTOBUF_LIMIT_BYTES:
        raise ExportError(f"the weights take {size / 2**30:.1f} GiB; the bridge carries models up to 1.9 GiB")
    raw = target.with_suffix(".raw.onnx")
    example = torch.from_numpy(to_nchw(example_nhwc))
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # The tracer warns of shapes read as Python numbers, and that TorchScript is deprecated: parity
            # judges what comes out.
            warnings.simplefilter("ignore")
            EXPORTERS[exporter](model, example, raw, opset)
        exported = onnx.load(raw)
        _name_by_module(exported.graph)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch's {exporter} exporter (opset {opset}) refused the model: {_first_line(error)}"
        ) from error
    finally:
        for leftover in target.parent.glob(f"{raw.name}*"):
            leftover.unlink()
    return finish_onnx(exported, target)


def finish_onnx(exported: Any, target: Path) -> dict[str, Any]:
    """Simplify a graph, hold it to the bridge's interface and write it.

    Returns:
        {"simplified": whether onnxsim's form is the one written, "nodes": number of nodes, "attention": whether two
        computed matrices are multiplied}.

    Raises:
        ExportError: Another interface than `images` with a dynamic batch → `logits`.
    """
    import onnx

    graph, simplified = _simplify(exported)
    _strip_local_paths(graph)
    _check_interface(graph)
    onnx.checker.check_model(graph)
    target.write_bytes(graph.SerializeToString(deterministic=True))
    return {
        "simplified": simplified,
        "nodes": len(graph.graph.node),
        "attention": _has_attention(graph.graph),
    }


def _has_attention(graph: Any) -> bool:
    """Whether two computed matrices are multiplied anywhere."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return any(
        node.op_type in ("MatMul", "Einsum") and len(node.input) > 1 and not stored.intersection(node.input)
        for node in graph.node
    )


def _export_torchscript(model: torch.nn.Module, example: torch.Tensor, target: Path, opset: int) -> None:
    import torch

    torch.onnx.export(
        model,
        (example,),
        str(target),
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
        do_constant_folding=True,
    )


def _export_dynamo(model: torch.nn.Module, example: torch.Tensor, target: Path, opset: int) -> None:
    import torch
    from onnxscript import optimizer

    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
        # Its own optimiser loses the limits of a Clip where two read the same tensor, as the clipped projections of
        # timm's Gemma 4 do: ONNX then refuses the graph. Of its passes only the next is wanted.
        optimize=False,
    )
    assert program is not None, "dynamo=True gives a program"
    # What torch splits is a sequence of tensors, which neither TensorFlow nor onnxsim knows, until this folds it.
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.save(target, external_data=False)


EXPORTERS = {"torchscript": _export_torchscript, "dynamo": _export_dynamo}
# dynamo's operators are written for opset 18; torch converts them down, not always rightly.
_LOWEST_OPSETS = {"dynamo": 18}


def lowest_opset(exporter: str) -> int:
    """The lowest opset that an exporter writes by itself."""
    return _LOWEST_OPSETS.get(exporter, 1)


def _simplify(exported: Any) -> tuple[Any, bool]:
    """onnxsim's form of the graph, or the graph itself where onnxsim fails: it is a help, not a need."""
    import onnxsim

    try:
        simplified, _ = onnxsim.simplify(exported, certify=False, tensor_size_threshold=_FOLD_AT_MOST)
    except Exception as error:  # noqa: BLE001 - onnxsim raises RuntimeError, ValueError and its own kinds
        log.warning("onnxsim failed, the exporter's graph is used as it is: %s", _first_line(error))
        return exported, False
    return simplified, True


def _name_by_module(graph: Any) -> None:
    """Name nodes by the module that they came from, as the TorchScript exporter does and dynamo does not.

    An operator that does not cross is reported by its node: "/stages.0/blocks.1/attn/Einsum" says where to look.
    dynamo keeps the modules beside the node, as a list in text: ['', 'stages.0', 'stages.0.blocks.1'].
    """
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
        if scopes is None:
            continue
        modules = [scope for scope in ast.literal_eval(scopes) if scope]
        # The last entry is the operation itself.
        name = "/".join(["", *modules[-2:-1], node.op_type])
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        taken[name] += 1


def _strip_local_paths(graph: Any) -> None:
    """Drop doc strings and metadata: they hold source lines of this machine, so bytes would differ."""
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _check_interface(graph: Any) -> None:
    inputs = [value.name for value in graph.graph.input]
    outputs = [value.name for value in graph.graph.output]
    if inputs != [INPUT_NAME] or outputs != [OUTPUT_NAME]:
        raise ExportError(
            f"the ONNX graph has inputs {inputs} and outputs {outputs}; one image input, one logits output"
        )
    if graph.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        raise ExportError("the ONNX graph lost its dynamic batch")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
