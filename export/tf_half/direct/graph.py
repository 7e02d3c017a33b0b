"""The ONNX file as plain Python: nodes, numpy constants, names. Nothing here knows TensorFlow."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.tf_half.direct.errors import LoweringError, UnsupportedOperatorError

# A dimension, or any integer of a shape, seen at each of the probed batch sizes; equal entries mean "does not
# depend on the batch". One entry when everything is static.
Dim = tuple[int, ...]
Dims = tuple[Dim, ...]

STANDARD_DOMAINS = ("", "ai.onnx")
INTERNAL_DOMAIN = "isthmus"


@dataclass(kw_only=True, eq=False)
class Node:
    """One operator call. Names are ONNX value names; an empty input name is an omitted optional input."""

    op_type: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    opset: int = 0
    out_dims: tuple[Dims, ...] | None = None
    """Shapes of the outputs at the probed batch sizes; None while they are still being probed."""

    def unsupported(self, reason: str) -> UnsupportedOperatorError:
        """The error that says what this node is and why it cannot be lowered."""
        return UnsupportedOperatorError(
            op_type=self.op_type, domain=self.domain, opset=self.opset, node=self.name, reason=reason
        )


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """A runtime input: name, numpy element type, dimensions (None where the file leaves them open)."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


@dataclass(kw_only=True)
class Fact:
    """What probing the graph at several batch sizes taught about one value."""

    dims: Dims
    constant: np.ndarray | None = None
    """The value, when it is the same for every batch size."""
    affine: tuple[np.ndarray, np.ndarray] | None = None
    """(slope, offset): the integer value is slope * batch + offset."""


@dataclass(kw_only=True)
class Graph:
    """Nodes in topological order, constants by name, and the facts learnt about every value."""

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: list[GraphInput]
    outputs: list[str]
    facts: dict[str, Fact] = field(default_factory=dict)
    _fresh: itertools.count = field(default_factory=itertools.count)

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that computes it."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, once per use; a graph output counts as a use by no node."""
        uses: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    uses[name].append(node)
        return uses

    def fresh_name(self, stem: str) -> str:
        """A value name that no ONNX file holds."""
        return f"{stem}::{next(self._fresh)}"

    def add_constant(self, stem: str, array: np.ndarray) -> str:
        """Store a new constant and return its name."""
        name = self.fresh_name(stem)
        self.constants[name] = array
        self.facts[name] = Fact(dims=static_dims(array.shape), constant=array)
        return name

    def constant(self, name: str) -> np.ndarray | None:
        """The array behind a name, when it does not depend on the input."""
        if name in self.constants:
            return self.constants[name]
        fact = self.facts.get(name)
        return fact.constant if fact else None

    def dims(self, name: str) -> Dims:
        """Shape of a value at the probed batch sizes."""
        return self.facts[name].dims

    def prune(self) -> None:
        """Drop nodes whose outputs nobody needs, and constants without a reader."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(name for name in node.inputs if name)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}


def static_dims(shape: Iterable[int], samples: int = 1) -> Dims:
    """A shape that is the same at every probed batch size."""
    return tuple((int(dim),) * samples for dim in shape)


def read_graph(path: Path) -> Graph:
    """Parse an ONNX file.

    Raises LoweringError when the file is not ONNX, and UnsupportedOperatorError for operators outside the
    standard domain. Nothing from the file is executed.
    """
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise LoweringError(
            f"{path} is not a readable ONNX model: {type(error).__name__}: {error}"
        ) from error
    if not model.graph.node:
        raise LoweringError(f"{path} is not an ONNX model: it holds no operators")
    return graph_from_model(model)


def graph_from_model(model: Any) -> Graph:
    """Convert an `onnx.ModelProto` into a Graph (see read_graph)."""
    import onnx
    from onnx import numpy_helper

    if model.functions:
        names = ", ".join(sorted({function.name for function in model.functions}))
        raise LoweringError(
            f"the ONNX model defines its own functions ({names}); inline them before lowering"
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise LoweringError("sparse initializers are not supported; store the weights densely")
    inputs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor_type = value.type.tensor_type
        shape = (
            tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim)
            if tensor_type.HasField("shape")
            else None
        )
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
        inputs.append(GraphInput(name=value.name, dtype=dtype, shape=shape))
    graph = Graph(
        nodes=[_read_node(node, index, opsets) for index, node in enumerate(model.graph.node)],
        constants=constants,
        inputs=inputs,
        outputs=[value.name for value in model.graph.output],
    )
    graph.prune()
    return graph


def _read_node(proto: Any, index: int, opsets: Mapping[str, int]) -> Node:
    import onnx

    opset = opsets.get(proto.domain, opsets.get("ai.onnx" if proto.domain == "" else "", 0))
    node = Node(
        op_type=proto.op_type,
        inputs=list(proto.input),
        outputs=list(proto.output),
        attrs={},
        name=proto.name or f"{proto.op_type}_{index}",
        domain="" if proto.domain in STANDARD_DOMAINS else proto.domain,
        opset=opset,
    )
    if node.domain:
        raise node.unsupported("only the standard ONNX domain is lowered")
    for attribute in proto.attribute:
        node.attrs[attribute.name] = _read_attribute(node, attribute, onnx)
    return node


def _read_attribute(node: Node, attribute: Any, onnx: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return onnx.numpy_helper.to_array(value)
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise node.unsupported("control flow (a graph attribute) is not lowered; simplify the model first")
    if attribute.type == onnx.AttributeProto.STRING:
        return value.decode()
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [entry.decode() for entry in value]
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value
