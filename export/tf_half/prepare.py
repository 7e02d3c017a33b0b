"""Fold the shape arithmetic of an ONNX graph: what depends on shapes only becomes a constant, or `a * batch
+ b`.

Exporters write `Shape`, `Gather`, `Mul`, `Concat` chains for every reshape of a model with a dynamic batch.
onnx2tf re-orders axes while it converts and cannot follow them. Here the graph runs at three batch sizes;
each tensor that
does not depend on the pixels' values and that a remaining node needs is replaced:

* the same at every batch size: by that constant;
* a shape vector with entries affine in the batch: by a -1 where a Reshape may infer it, else by a new small
  subgraph `a * batch + b`;
* anything else (a class token expanded to the batch): its node stays, and its own inputs are treated the
  same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Three points decide that a value is affine; none of them is a size that a model has for other reasons.
BATCH_SIZES = (2, 3, 5)
# Operators whose output says something of the input's shape and nothing of its values.
SHAPE_OPERATORS = frozenset({"Shape", "Size"})
MAX_CONSTANT_BYTES = 64 << 20
_PREFIX = "isthmus_folded"


def fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` (one image input [N, C, H, W] with a dynamic N) with its shape arithmetic folded.

    A graph with control flow, or with nothing to fold, is returned as it is.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return model
    computed = _value_independent(graph)
    if not computed:
        return model
    observed, reshaped = _observe(model, sorted(computed), computed)
    return _Rewriter(model, computed, observed, reshaped).rewritten()


def _image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    initialized = {tensor.name for tensor in graph.initializer}
    return next(value for value in graph.input if value.name not in initialized)


def _value_independent(graph: onnx.GraphProto) -> set[str]:
    """Names of computed tensors that are functions of shapes and constants only (graph.node is in order)."""
    dependent = {_image_input(graph).name}
    independent: set[str] = set()
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        random = node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
        if random or (node.op_type not in SHAPE_OPERATORS and dependent.intersection(node.input)):
            dependent.update(node.output)
        else:
            independent.update(name for name in node.output if name)
    return independent


Observed = dict[str, list[np.ndarray]]


def _observe(model: onnx.ModelProto, names: list[str], computed: set[str]) -> tuple[Observed, Observed]:
    """What ONNX Runtime computes at each of `BATCH_SIZES`.

    Returns:
        The values of the named tensors, and the shapes of what Reshapes with a computed target give.
    """
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {output.name for output in probe.graph.output}
    reshaped = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[1] in computed and node.output[0] not in computed
    ]
    wanted = dict.fromkeys([*names, *reshaped])
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    image = session.get_inputs()[0]
    values: Observed = {name: [] for name in names}
    shapes: Observed = {name: [] for name in reshaped}
    for size in BATCH_SIZES:
        pixels = np.zeros([size, *image.shape[1:]], np.float32)
        run = dict(zip(wanted, session.run(list(wanted), {image.name: pixels}), strict=True))
        for name in names:
            values[name].append(run[name])
        for name in reshaped:
            shapes[name].append(np.array(run[name].shape, np.int64))
    return values, shapes


@dataclasses.dataclass(frozen=True)
class _Affine:
    """`slope * batch + offset`, elementwise: int64 [n], or [] for a scalar."""

    slope: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(cls, values: list[np.ndarray]) -> _Affine | None:
        """None when the values are no integers of one shape, or not affine in the batch size."""
        first, second = values[:2]
        integers = all(v.dtype.kind == "i" and v.ndim <= 1 and v.shape == first.shape for v in values)
        if not integers:
            return None
        step = BATCH_SIZES[1] - BATCH_SIZES[0]
        slope = (second.astype(np.int64) - first) // step
        fit = cls(slope=slope, offset=first.astype(np.int64) - slope * BATCH_SIZES[0])
        exact = all(
            np.array_equal(fit.slope * n + fit.offset, v) for n, v in zip(BATCH_SIZES, values, strict=True)
        )
        return fit if exact else None


class _Rewriter:
    """Walks back from the nodes that depend on pixels, and replaces what they read."""

    def __init__(
        self,
        model: onnx.ModelProto,
        computed: set[str],
        observed: Mapping[str, list[np.ndarray]],
        reshaped: Mapping[str, list[np.ndarray]],
    ) -> None:
        self._model = model
        self._computed = computed
        self._observed = observed
        self._reshaped = reshaped
        self._new_nodes: list[onnx.NodeProto] = []
        self._new_initializers: dict[str, onnx.TensorProto] = {}
        self._constant_of: dict[str, str] = {}

    def rewritten(self) -> onnx.ModelProto:
        """The folded model."""
        nodes: list[onnx.NodeProto] = []
        needed = {output.name for output in self._model.graph.output}
        for original in reversed(self._model.graph.node):
            folded = self._computed.issuperset(original.output) and not needed.intersection(original.output)
            if folded:
                continue
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for position, name in enumerate(node.input):
                if name in self._computed:
                    node.input[position] = self._replacement(node, position, name)
            needed.update(node.input)
            nodes.append(node)
        return self._assembled([*self._new_nodes, *reversed(nodes)])

    def _replacement(self, node: onnx.NodeProto, position: int, name: str) -> str:
        values = self._observed[name]
        if node.op_type == "Reshape" and position == 1 and node.output[0] in self._reshaped:
            # The shape that came out says what a -1 or a 0 in the target stands for.
            values = self._reshaped[node.output[0]]
            name = f"{node.output[0]}_shape"
        if all(np.array_equal(v, values[0]) and v.shape == values[0].shape for v in values):
            return self._constant(name, values[0]) if values[0].nbytes <= MAX_CONSTANT_BYTES else name
        affine = _Affine.fit(values)
        if affine is None:
            return name
        if node.op_type == "Reshape" and position == 1 and np.count_nonzero(affine.slope) == 1:
            inferred = np.where(affine.slope != 0, -1, affine.offset)
            if not (inferred == 0).any():
                return self._constant(f"{name}_inferred", inferred)
        return self._affine(name, affine, values[0].dtype)

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._constant_of:
            constant = f"{_PREFIX}_{len(self._new_initializers)}"
            self._new_initializers[constant] = numpy_helper.from_array(np.ascontiguousarray(value), constant)
            self._constant_of[name] = constant
        return self._constant_of[name]

    def _affine(self, name: str, affine: _Affine, dtype: np.dtype[Any]) -> str:
        """`slope * batch + offset` as nodes that read the image's own shape."""
        result = f"{_PREFIX}_affine_{name}"
        if name in self._constant_of:
            return result
        self._constant_of[name] = result
        batch = self._batch_size()
        shape = affine.slope.shape
        slope = self._constant(f"{name}_slope", affine.slope)
        offset = self._constant(f"{name}_offset", affine.offset)
        scalar = batch
        if not shape:
            scalar = f"{result}_batch"
            axes = self._constant("axis_0", np.array([0], np.int64))
            self._new_nodes.append(helper.make_node("Squeeze", [batch, axes], [scalar], name=scalar))
        target = result if dtype == np.int64 else f"{result}_int64"
        self._new_nodes.append(
            helper.make_node("Mul", [scalar, slope], [f"{result}_mul"], name=f"{result}_mul")
        )
        self._new_nodes.append(helper.make_node("Add", [f"{result}_mul", offset], [target], name=target))
        if dtype != np.int64:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            self._new_nodes.append(helper.make_node("Cast", [target], [result], name=result, to=kind))
        return result

    def _batch_size(self) -> str:
        """int64 [1]."""
        batch = f"{_PREFIX}_batch"
        if not any(batch in node.output for node in self._new_nodes):
            image = _image_input(self._model.graph).name
            self._new_nodes.append(
                helper.make_node("Shape", [image], [f"{batch}_shape"], name=f"{batch}_shape")
            )
            first = self._constant("axis_0", np.array([0], np.int64))
            self._new_nodes.append(helper.make_node("Gather", [f"{batch}_shape", first], [batch], name=batch))
        return batch

    def _assembled(self, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        graph.initializer.extend(self._new_initializers[name] for name in sorted(self._new_initializers))
        produced = {name for node in graph.node for name in node.output}
        infos = [info for info in graph.value_info if info.name in produced]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        return model
