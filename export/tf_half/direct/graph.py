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
    branches: dict[str, Graph] = field(default_factory=dict)
    """then_branch and else_branch of an If."""

    def reads(self) -> set[str]:
        """Names the node needs: its inputs, and what its branches take from outside."""
        names = {name for name in self.inputs if name}
        return names.union(*(branch.free_names() for branch in self.branches.values()))

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
    decided: list[str] = field(default_factory=list)
    """Conditions of the Ifs whose branch was taken while probing."""
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

    def rename(self, new: Mapping[str, str]) -> None:
        """Give values other names, here and wherever branches further in take them from here."""
        for node in self.nodes:
            node.inputs = [new.get(name, name) for name in node.inputs]
            node.outputs = [new.get(name, name) for name in node.outputs]
            for branch in node.branches.values():
                branch.rename({name: new[name] for name in branch.free_names() & new.keys()})
        self.constants = {new.get(name, name): array for name, array in self.constants.items()}
        self.outputs = [new.get(name, name) for name in self.outputs]

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

    def free_names(self) -> set[str]:
        """Names that are read here and defined nowhere here: an enclosing graph's values."""
        return self.read_names() - self.defined_names()

    def defined_names(self) -> set[str]:
        """Names of the constants and of everything that a node here computes."""
        return set(self.constants) | {name for node in self.nodes for name in node.outputs if name}

    def read_names(self) -> set[str]:
        """Names that a node or a branch here reads, and the graph's outputs."""
        return set(self.outputs).union(*(node.reads() for node in self.nodes))

    def drop_unread_outputs(self) -> None:
        """Blank the further outputs of nodes (a Dropout's mask, a MaxPool's indices) that are read nowhere.

        Many files name them all; a handler then refuses only what somebody really asks for.
        """
        read = self.read_names()
        for node in self.nodes:
            node.outputs[1:] = [name if name in read else "" for name in node.outputs[1:]]

    def prune(self) -> None:
        """Drop nodes whose outputs nobody needs, and constants without a reader."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed |= node.reads()
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

    if model.functions:
        names = ", ".join(sorted({function.name for function in model.functions}))
        raise LoweringError(
            f"the ONNX model defines its own functions ({names}); inline them before lowering"
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    graph = _read_body(model.graph, opsets)
    constants = graph.constants
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
    graph.inputs = inputs
    graph.prune()
    return graph


def _read_body(proto: Any, opsets: Mapping[str, int]) -> Graph:
    """Nodes, constants and outputs of a `onnx.GraphProto`: the model's own or a branch's."""
    from onnx import numpy_helper

    if proto.sparse_initializer:
        raise LoweringError("sparse initializers are not supported; store the weights densely")
    graph = Graph(
        nodes=[_read_node(node, index, opsets) for index, node in enumerate(proto.node)],
        constants={tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer},
        inputs=[],
        outputs=[value.name for value in proto.output],
    )
    graph.drop_unread_outputs()
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
        if attribute.type == onnx.AttributeProto.GRAPH and node.op_type == "If":
            node.branches[attribute.name] = _read_body(attribute.g, opsets)
        else:
            node.attrs[attribute.name] = _read_attribute(node, attribute, onnx)
    return node


def _read_attribute(node: Node, attribute: Any, onnx: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return onnx.numpy_helper.to_array(value)
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise node.unsupported("loops are not lowered; simplify the model first")
    if attribute.type == onnx.AttributeProto.STRING:
        return value.decode()
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [entry.decode() for entry in value]
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value
