"""Graphs that were exported for one batch size, made free of it.

The axis that counts images is followed from the input through the graph. Where a constant says how many there
are it stops saying so: the target of a Reshape or Expand, a class token that was repeated for each image, a mask
that was repeated for each image's windows. Only values that depend on the image are touched. Nothing here is
proof: foreign_form.py runs what comes out at several batch sizes against the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isthmus.export.errors import ExportError
from isthmus.export.torch_half.foreign_ending import prune, reads
from isthmus.export.torch_half.onnx_model import INPUT_NAME

#: Operators whose inputs are stretched to one another: a constant may hold a row for each image.
_BROADCAST = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "Where",
        "Equal",
        "Less",
        "Greater",
        "And",
        "Or",
        "MatMul",
    }
)
_BATCH = "isthmus_batch"


def free_batch(proto: Any, batch: int) -> None:
    """Let `proto` (onnx.ModelProto in the bridge's form; changed) take any batch where it was made for `batch`."""
    constants = _fold(proto)
    following = _Following(proto, constants, batch)
    for node in list(proto.graph.node):
        following.pass_node(node)
    following.finish()
    prune(proto.graph)


def _fold(proto: Any) -> dict[str, np.ndarray]:
    """Make initializers of what does not depend on the image; returns every constant by name."""
    import onnxruntime
    from onnx import ModelProto, ValueInfoProto, numpy_helper

    graph = proto.graph
    dependent = {INPUT_NAME}
    fixed = []
    for node in graph.node:
        if dependent.intersection(reads(node)):
            dependent.update(name for name in node.output if name)
        else:
            fixed.append(node)
    computed = [name for node in fixed for name in node.output if name]
    wanted = sorted(
        set(computed) & set().union(*(reads(node) for node in graph.node if node.output[0] in dependent))
    )
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    if not wanted:
        return constants
    part = ModelProto()
    part.CopyFrom(proto)
    del part.graph.output[:], part.graph.input[:], part.graph.node[:]
    part.graph.node.extend(fixed)
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    prune(part.graph)
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        values = dict(zip(wanted, session.run(None, {}), strict=True))
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot compute the graph's constants: {error}") from error
    kept = [node for node in graph.node if not set(node.output).intersection(computed)]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return {**constants, **values}


def _shapes(proto: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """The sizes of values at the file's own batch, as far as ONNX infers them."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.output[0].type.tensor_type.shape.dim[:]
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


class _Following:
    """Where each value counts images, and what had to change for it."""

    def __init__(self, proto: Any, constants: dict[str, np.ndarray], batch: int) -> None:
        self.graph, self.constants, self.batch = proto.graph, constants, batch
        self.shapes = _shapes(proto, batch)
        self.shapes.update({name: value.shape for name, value in constants.items()})
        self.axes = {INPUT_NAME: 0}
        self.before: dict[str, list[Any]] = {}

    def pass_node(self, node: Any) -> None:
        """Free one node of the batch and note the axis of its outputs."""
        source = next((name for name in node.input if name in self.axes), None)
        if source is None or node.op_type == "Shape":
            return
        axis = self._axis_after(node, source)
        if node.op_type == "Reshape":
            self._free_reshape(node, axis)
        elif node.op_type == "Expand" and node.input[1] in self.constants:
            target = self.constants[node.input[1]].copy()
            if axis is not None and axis < len(target):
                target[axis] = 1
                node.input[1] = self._store(target, f"{node.output[0]}_target")
        elif axis is not None and (node.op_type == "Concat" or node.op_type in _BROADCAST):
            self._free_constants(node, axis)
        if axis is not None:
            self.axes.update(dict.fromkeys(filter(None, node.output), axis))

    def finish(self) -> None:
        """Put the nodes that were added before those that read them."""
        nodes = [entry for node in self.graph.node for entry in (*self.before.get(node.output[0], ()), node)]
        if self.before:
            nodes = [*self._batch_size(), *nodes]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _axis_after(self, node: Any, source: str) -> int | None:
        """The axis of images in a node's outputs; None where it is lost."""
        axis, given = self.axes[source], self.shapes.get(source)
        out = self.shapes.get(node.output[0])
        operator = node.op_type
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if operator == "Transpose":
            return list(attributes["perm"].ints).index(axis) if "perm" in attributes else None
        if operator in ("Reshape", "Flatten"):
            return _axis_reshaped(axis, given, out, self.batch)
        if given is None or out is None:
            return axis
        if operator in ("Squeeze", "Unsqueeze") or (operator.startswith("Reduce") and len(out) < len(given)):
            named = list(attributes["axes"].ints) if "axes" in attributes else None
            if named is None and len(node.input) > 1 and node.input[1] in self.constants:
                named = [int(value) for value in self.constants[node.input[1]].ravel()]
            return _axis_squeezed(axis, named, len(given), len(out))
        if operator in ("Gather", "ArgMax", "ArgMin") and len(out) != len(given):
            taken = (attributes["axis"].i if "axis" in attributes else 0) % len(given)
            return None if taken == axis else axis + (len(out) - len(given)) * (taken < axis)
        return axis + len(out) - len(given)

    def _free_reshape(self, node: Any, axis: int | None) -> None:
        target = self.constants.get(node.input[1])
        out = self.shapes.get(node.output[0])
        if target is None or target.ndim != 1 or node.input[0] not in self.axes:
            return
        if out is not None and axis is not None and 0 not in out:
            freed = np.array(out, np.int64)
            freed[axis] = -1
        elif len(target) and target[0] == self.batch:
            freed = target.copy()
            # -1 where it is free, else 0: "as in the input", right where the input begins with the batch too.
            freed[0] = 0 if (target == -1).any() else -1
        else:
            return
        node.input[1] = self._store(freed, f"{node.output[0]}_target")

    def _free_constants(self, node: Any, axis: int) -> None:
        """Constants that hold the same for each image hold it once, and are repeated as often as there are images."""
        out = self.shapes.get(node.output[0])
        for place, name in enumerate(node.input):
            value = self.constants.get(name)
            if value is None or out is None:
                continue
            own = axis - (len(out) - value.ndim)
            size = value.shape[own] if own >= 0 else 1
            if size != out[axis] or size % self.batch or (size == 1 and node.op_type != "Concat"):
                continue
            once = np.take(value, range(size // self.batch), axis=own)
            if not np.array_equal(np.concatenate([once] * self.batch, axis=own), value):
                continue
            label = f"{node.output[0]}_{place}"
            stored = self._store(once, f"{label}_once")
            stretched = node.op_type != "Concat" and size == self.batch
            node.input[place] = stored if stretched else self._repeated(node, stored, own, value.ndim, label)

    def _repeated(self, node: Any, stored: str, axis: int, rank: int, label: str) -> str:
        from onnx import helper

        parts = [
            self._store(np.ones(axis, np.int64), f"{label}_left") if axis else "",
            _BATCH,
            self._store(np.ones(rank - axis - 1, np.int64), f"{label}_right") if axis + 1 < rank else "",
        ]
        self.before.setdefault(node.output[0], []).extend(
            [
                helper.make_node("Concat", list(filter(None, parts)), [f"{label}_repeats"], axis=0),
                helper.make_node("Tile", [stored, f"{label}_repeats"], [f"{label}_repeated"]),
            ]
        )
        return f"{label}_repeated"

    def _batch_size(self) -> list[Any]:
        from onnx import helper

        first = self._store(np.array([0], np.int64), f"{_BATCH}_axis")
        return [
            helper.make_node("Shape", [INPUT_NAME], [f"{_BATCH}_shape"]),
            helper.make_node("Gather", [f"{_BATCH}_shape", first], [_BATCH], axis=0),
        ]

    def _store(self, value: np.ndarray, name: str) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def _axis_squeezed(axis: int, named: list[int] | None, given: int, out: int) -> int | None:
    """The axis after others were taken away or, where there are more than before, put in."""
    if named is None:
        return None
    named = sorted(place % max(given, out) for place in named)
    if out > given:
        for place in named:
            axis += place <= axis
        return axis
    return None if axis in named else axis - sum(place < axis for place in named)


def _axis_reshaped(
    axis: int, given: tuple[int, ...] | None, out: tuple[int, ...] | None, batch: int
) -> int | None:
    """The axis that begins where the axis of images began, and counts a multiple of them."""
    if given is None or out is None:
        return axis if axis == 0 else None
    places = [
        place
        for place in range(len(out))
        if math.prod(out[:place]) == math.prod(given[:axis]) and out[place] % batch == 0
    ]
    return places[0] if places else None
