"""Where a lowered graph leaves the model: ONNX node by ONNX node, against ONNX Runtime.

    python -m isthmus.export.tf_half.diagnose <job folder>

request.json: {"onnx", "rung", "reference", "rows" (indexes of images), "limit"}.
result.json: {"cause", "first" (a row or None), "rows": [{"index", "node", "op_type", "output", "error", "image"}]}.

The direct rung says which TensorFlow tensor is which ONNX value. onnx2tf gives its tensors names of its own and
turns axes around, so there an ONNX value is looked for among all tensors of as many elements, by its sorted values:
a node that was fused with another is not found, which means nothing; that nothing after it is found, does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.jobs import serve_job
from isthmus.export.reference import Reference

LOWERING, OPTIMISERS, NOWHERE = "lowering", "optimisers", "nowhere"
_CHUNK = 48


@dataclass(kw_only=True)
class NodeError:
    """How far one ONNX node's output is from ONNX Runtime's."""

    index: int
    """Place in the ONNX graph."""

    node: str
    """Name of the node."""

    op_type: str
    """Its operator."""

    output: str
    """The value."""

    error: float
    """max |Δ| ÷ standard deviation of the value's elements; inf: of another shape, or not finite."""

    image: int
    """Index of the image on which it is largest."""


def prepare() -> None:
    """Import TensorFlow before the request is there."""
    import tensorflow as tf

    assert tf


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Compare every value; then, where the graph as written is right, look at what the optimisers make of it."""
    del folder
    onnx_path, limit, rows = Path(request["onnx"]), request["limit"], request["rows"]
    images = Reference.load(Path(request["reference"])).images[rows]
    truth = _true_values(onnx_path, images)
    traced = (
        _direct_graph(onnx_path) if request["rung"] == "direct" else _any_graph(onnx_path, request["rung"])
    )
    found = _compare(truth, traced, images, rows)
    cause, first = LOWERING, first_diverging(found, limit)
    if first is None and found:
        cause, first = _after_optimising(truth, traced, images, rows, found, limit)
    return {
        "cause": cause if first is not None else NOWHERE,
        "first": _plain(first) if first is not None else None,
        "rows": [_plain(row) for row in found],
    }


def first_diverging(rows: Sequence[NodeError], limit: float) -> NodeError | None:
    """The first row from which on no later one is within the limit; None where the last is within it."""
    beyond = [not row.error <= limit for row in rows]
    if not beyond or not beyond[-1]:
        return None
    last_right = max((i for i, wrong in enumerate(beyond) if not wrong), default=-1)
    return rows[last_right + 1]


@dataclass(kw_only=True)
class _Truth:
    """What ONNX Runtime computes for one node's first output."""

    index: int
    node: str
    op_type: str
    output: str
    value: np.ndarray


@dataclass(kw_only=True)
class _Traced:
    """A TensorFlow graph, and which tensor is which ONNX value (None: to be found by its values)."""

    graph_def: Any
    input_name: str
    tensor_of: dict[str, str] | None
    output_name: str


def _true_values(onnx_path: Path, images: np.ndarray) -> list[_Truth]:
    import onnx
    import onnxruntime

    model = onnx.load(onnx_path)
    present = {value.name for value in model.graph.output}
    named = [(i, node) for i, node in enumerate(model.graph.node) if node.output and node.output[0]]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=node.output[0]) for _, node in named if node.output[0] not in present
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = [node.output[0] for _, node in named]
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    values = session.run(wanted, {session.get_inputs()[0].name: nchw})
    return [
        _Truth(index=i, node=node.name or node.output[0], op_type=node.op_type, output=name, value=value)
        for (i, node), name, value in zip(named, wanted, values, strict=True)
        # Shapes and constants say nothing: a value of the images has a row for each of them.
        if value.dtype == np.float32 and value.ndim >= 2 and value.shape[0] == len(images) and value.std() > 0
    ]


def _direct_graph(onnx_path: Path) -> _Traced:
    import tensorflow as tf

    from isthmus.export.tf_half.direct.graph import read_graph
    from isthmus.export.tf_half.direct.lowering import GraphFunction
    from isthmus.export.tf_half.direct.values import channels_last

    graph = read_graph(onnx_path)
    entry = graph.inputs[0]
    assert entry.shape is not None
    _, channels, height, width = entry.shape
    function = GraphFunction(graph, {entry.name: channels_last(4)})
    names = [name for node in graph.nodes for name in node.outputs[:1] if name]
    graph.outputs = [*dict.fromkeys([*names, *graph.outputs])]

    @tf.autograph.experimental.do_not_convert
    def call(images: tf.Tensor) -> list[tf.Tensor]:
        return [tf.identity(value) for value in function({entry.name: images})]

    spec = tf.TensorSpec([None, height, width, channels], tf.float32, name="images")
    concrete = tf.function(call, input_signature=[spec]).get_concrete_function()
    tensors = {name: tensor.name for name, tensor in zip(graph.outputs, concrete.outputs, strict=True)}
    return _Traced(
        graph_def=concrete.graph.as_graph_def(),
        input_name=concrete.inputs[0].name,
        tensor_of=tensors,
        output_name=tensors[graph.outputs[-1]],
    )


def _any_graph(onnx_path: Path, rung: Any) -> _Traced:
    import tensorflow as tf

    from isthmus.export.tf_half import lowering
    from isthmus.export.tf_half.direct.graph import read_graph

    logits = lowering.lower(onnx_path, rung=rung)
    shape = read_graph(onnx_path).inputs[0].shape
    assert shape is not None
    spec = tf.TensorSpec([None, *shape[2:], shape[1]], tf.float32, name="images")
    concrete = tf.function(logits, input_signature=[spec], autograph=False).get_concrete_function()
    return _Traced(
        graph_def=concrete.graph.as_graph_def(),
        input_name=concrete.inputs[0].name,
        tensor_of=None,
        output_name=concrete.outputs[0].name,
    )


def _session(traced: _Traced, *, optimised: bool) -> Any:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(traced.graph_def, name="")
    config = tf.compat.v1.ConfigProto()
    if not optimised:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    return tf.compat.v1.Session(graph=graph, config=config)


def _compare(
    truth: Sequence[_Truth], traced: _Traced, images: np.ndarray, rows: Sequence[int]
) -> list[NodeError]:
    """Every ONNX value that the graph has, as it is written: no optimiser runs."""
    with _session(traced, optimised=False) as session:
        if traced.tensor_of is not None:
            known = [
                (true, traced.tensor_of[true.output]) for true in truth if true.output in traced.tensor_of
            ]
            values = _fetch(session, traced, [name for _, name in known], images)
            pairs = zip(known, values, strict=True)
            return [_row(true, value, rows, error_of) for (true, _), value in pairs]
        names = [
            tensor.name
            for operation in session.graph.get_operations()
            for tensor in operation.outputs
            if tensor.dtype.name == "float32" and operation.type not in ("Const", "Placeholder")
        ]
        by_size: dict[int, list[np.ndarray]] = {}
        for value in _fetch(session, traced, names, images):
            if value.ndim and value.shape[0] == len(images):
                by_size.setdefault(value.size, []).append(np.sort(value.reshape(len(images), -1), axis=1))
        final = session.run(traced.output_name, {traced.input_name: images})
    found = []
    for true in truth[:-1]:
        candidates = by_size.get(true.value.size, [])
        if candidates:
            found.append(
                min((_row(true, c, rows, _sorted_error) for c in candidates), key=lambda row: row.error)
            )
    return [*found, _row(truth[-1], final, rows, error_of)]


def _fetch(session: Any, traced: _Traced, names: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
    values: list[np.ndarray] = []
    for start in range(0, len(names), _CHUNK):
        values += session.run(list(names[start : start + _CHUNK]), {traced.input_name: images})
    return values


def _row(
    true: _Truth,
    value: np.ndarray,
    rows: Sequence[int],
    errors: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> NodeError:
    each = errors(true.value, value)
    worst = int(each.argmax())
    return NodeError(
        index=true.index,
        node=true.node,
        op_type=true.op_type,
        output=true.output,
        error=float(each[worst]),
        image=rows[worst],
    )


def error_of(true: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Error of each image, [N]: max |Δ| ÷ standard deviation of the true value's elements."""
    if true.shape != value.shape:
        return np.full(len(true), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.abs(value.astype(np.float64) - true).reshape(len(true), -1).max(axis=1)
    return np.where(np.isfinite(delta), delta / float(true.std()), np.inf)


def _sorted_error(true: np.ndarray, already_sorted: np.ndarray) -> np.ndarray:
    """The same whatever the order of an image's elements."""
    return error_of(np.sort(true.reshape(len(true), -1), axis=1), already_sorted)


def _after_optimising(
    truth: Sequence[_Truth],
    traced: _Traced,
    images: np.ndarray,
    rows: Sequence[int],
    found: list[NodeError],
    limit: float,
) -> tuple[str, NodeError | None]:
    """The same as served: each value on its own, so that TensorFlow may fuse what leads to it; by bisection."""
    true_of = {true.output: true for true in truth}
    with _session(traced, optimised=True) as session:

        def served(row: NodeError) -> NodeError:
            last = row.output == found[-1].output
            name = traced.output_name if last else (traced.tensor_of or {})[row.output]
            value = session.run(name, {traced.input_name: images})
            return _row(true_of[row.output], value, rows, error_of)

        final = served(found[-1])
        if final.error <= limit:
            return NOWHERE, None
        found[-1] = final
        if traced.tensor_of is None:
            return OPTIMISERS, final
        right, wrong = -1, len(found) - 1
        while wrong - right > 1:
            middle = (right + wrong) // 2
            found[middle] = served(found[middle])
            if found[middle].error <= limit:
                right = middle
            else:
                wrong = middle
    return OPTIMISERS, found[wrong]


def _plain(row: NodeError) -> dict[str, Any]:
    return {**vars(row), "error": row.error if np.isfinite(row.error) else None}


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run, prepare=prepare))
