"""From an ONNX file to a TensorFlow function: probe the shapes, fuse, then emit operator by operator.

The graph is walked three times. Two probes at fixed batch sizes evaluate everything that does not depend on
pixels (the shape arithmetic that exporters leave behind) and record every shape; what differs between the two
is an affine function of the batch. The third walk, once per trace of the returned callable, emits the
operators with static shapes everywhere except where the batch enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct import fusions, operators
from isthmus.export.tf_half.direct.errors import LoweringError
from isthmus.export.tf_half.direct.graph import Dims, Fact, Graph, GraphInput, Node, read_graph, static_dims
from isthmus.export.tf_half.direct.registry import handler_for
from isthmus.export.tf_half.direct.values import Order, Run, Value, channels_last, current_run

# Two sizes that no exporter bakes in by accident; tracing used 2, an image has 1 or 3 channels.
PROBED_BATCH_SIZES = (5, 7)

operators.register_all()


class GraphFunction:
    """An ONNX graph as a function of tensors: `function({name: tensor})` emits it into the current graph.

    Any number of inputs and outputs of any rank; an input's first axis may be open: it is then the batch.
    """

    def __init__(self, graph: Graph, orders: Mapping[str, Order] | None = None) -> None:
        """`orders`: the axis order of inputs that are not given in ONNX's own."""
        self.graph = graph
        self.orders = {
            entry.name: tuple((orders or {}).get(entry.name, range(len(entry.shape or ()))))
            for entry in graph.inputs
        }
        probe(graph, self.orders)
        fusions.fuse(graph)

    def __call__(self, feeds: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """The outputs, in ONNX's axis order."""
        values = {name: Value.of(feeds[name], order) for name, order in self.orders.items()}
        for name, value in values.items():
            value.dims = self.graph.dims(name)
        batched = [
            values[entry.name] for entry in self.graph.inputs if entry.shape and entry.shape[0] is None
        ]
        batch = tf.shape(batched[0].tensor)[batched[0].axis(0)] if batched else None
        with _running(Run(batch_sizes=PROBED_BATCH_SIZES, batch=batch)):
            return [value.logical() for value in emit(self.graph, values)]


class LoweredGraph:
    """`images` float32 [N, H, W, C] -> `logits` float32 [N, num_classes], for any N.

    Trace it inside a tf.function.
    """

    def __init__(self, graph: Graph) -> None:
        self._input = _single_image_input(graph)
        if len(graph.outputs) != 1:
            raise LoweringError(
                f"the ONNX model has {len(graph.outputs)} outputs; exactly one (the logits) is served"
            )
        _, channels, height, width = self._input.shape or (None,) * 4
        self.image_shape = (height, width, channels)
        self._function = GraphFunction(graph, {self._input.name: channels_last(4)})

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Emit the graph; see the class's docstring."""
        images = tf.ensure_shape(tf.convert_to_tensor(images, tf.float32), [None, *self.image_shape])
        (logits,) = self._function({self._input.name: images})
        return logits


def lower_graph(onnx_path: Path | str) -> LoweredGraph:
    """Lower an image classifier: one float input [N, C, H, W] with a dynamic N, one output [N, num_classes].

    Returns a callable on float32 NHWC images. Raises LoweringError for a file that is no such model and
    UnsupportedOperatorError for an operator that has no lowering.
    """
    return LoweredGraph(read_graph(Path(onnx_path)))


def _single_image_input(graph: Graph) -> GraphInput:
    if len(graph.inputs) != 1:
        names = ", ".join(entry.name for entry in graph.inputs) or "none"
        raise LoweringError(
            f"the ONNX model has {len(graph.inputs)} inputs ({names}); exactly one image input is served"
        )
    image = graph.inputs[0]
    if image.shape is None or len(image.shape) != 4 or None in image.shape[1:] or image.dtype != np.float32:
        raise LoweringError(
            f"ONNX input {image.name!r} is {image.dtype} {image.shape}; "
            "expected float32 [N, C, H, W] with fixed C, H, W"
        )
    if image.shape[0] is not None:
        raise LoweringError(
            f"ONNX input {image.name!r} has a fixed batch of {image.shape[0]}; "
            "export it with a dynamic batch axis"
        )
    return image


@contextmanager
def _running(run: Run) -> Iterator[None]:
    token = current_run.set(run)
    try:
        yield
    finally:
        current_run.reset(token)


def probe(graph: Graph, orders: Mapping[str, Order]) -> None:
    """Fill `graph.facts` by walking the graph at PROBED_BATCH_SIZES, and drop what turned out constant."""
    invariant: dict[str, np.ndarray] = dict(graph.constants)
    walks: list[dict[str, Value]] = []
    for batch_size in PROBED_BATCH_SIZES:
        # A FuncGraph, unlike tf.Graph, lets tf.init_scope evaluate constants eagerly from inside.
        probed = tf.__internal__.FuncGraph("probe")
        with probed.as_default(), _running(Run(batch_sizes=(batch_size,), probing=True)):
            feeds = {entry.name: _probe_feed(entry, batch_size, orders[entry.name]) for entry in graph.inputs}
            walks.append(_walk(graph, feeds, invariant))
    graph.facts = {name: _compare(name, [walk[name] for walk in walks]) for name in walks[0]}
    for name in graph.decided:
        if graph.facts[name].constant is None:
            raise LoweringError(f"an If of the ONNX model depends on the batch size, through {name!r}")
    for node in graph.nodes:
        node.out_dims = tuple(graph.facts[name].dims if name else () for name in node.outputs)
    settle_constants(graph)


def _probe_feed(entry: GraphInput, batch_size: int, order: Order) -> Value:
    shape = entry.shape
    if shape is None or None in shape[1:]:
        raise LoweringError(f"ONNX input {entry.name!r} has shape {shape}; only the first axis may be open")
    sizes = [batch_size if size is None else size for size in shape]
    stored = [sizes[axis] for axis in order]
    return Value.of(tf.raw_ops.Placeholder(dtype=tf.as_dtype(entry.dtype), shape=stored), order)


def settle_constants(graph: Graph) -> None:
    """Drop nodes whose outputs are constants or affine in the batch, and whatever only fed those."""
    remaining = []
    for node in graph.nodes:
        known = {name: graph.facts[name] for name in node.outputs if name}
        if all(fact.constant is not None or fact.affine is not None for fact in known.values()):
            constants = {name: fact.constant for name, fact in known.items() if fact.constant is not None}
            graph.constants.update(constants)
        else:
            remaining.append(node)
    graph.nodes = remaining
    graph.prune()


def _compare(name: str, values: list[Value]) -> Fact:
    shapes = [value.shape for value in values]
    if len({len(shape) for shape in shapes}) != 1:
        raise LoweringError(f"the rank of ONNX value {name!r} depends on the batch size")
    dims: Dims = tuple(zip(*shapes, strict=True))
    arrays = [value.constant for value in values if value.constant is not None]
    if len(arrays) < len(values) or len({array.shape for array in arrays}) != 1:
        return Fact(dims=dims)
    if all(array is arrays[0] or np.array_equal(array, arrays[0]) for array in arrays):
        return Fact(dims=dims, constant=arrays[0])
    if not np.issubdtype(arrays[0].dtype, np.integer):
        return Fact(dims=dims)
    (n0, n1), (first, second) = PROBED_BATCH_SIZES, arrays
    slope, rest = np.divmod(second.astype(np.int64) - first, n1 - n0)
    if rest.any():
        return Fact(dims=dims)
    return Fact(dims=dims, affine=(slope, first - slope * n0))


def _walk(graph: Graph, feeds: Mapping[str, Value], invariant: dict[str, np.ndarray]) -> dict[str, Value]:
    """One probe: every value, constants evaluated. `invariant` carries over what needs no batch."""
    env = {name: Value.const(array) for name, array in graph.constants.items()}
    env.update(feeds)
    position = 0
    while position < len(graph.nodes):
        node = graph.nodes[position]
        if node.branches:
            graph.nodes[position : position + 1] = _taken_branch(graph, node, env, invariant)
            continue
        position += 1
        if all(name in invariant or not name for name in node.outputs):
            env.update({name: Value.const(invariant[name]) for name in node.outputs if name})
            continue
        inputs = [env[name] if name else None for name in node.inputs]
        if all(value is None or value.constant is not None for value in inputs):
            with tf.init_scope():
                results = [Value.const(_evaluate(value)) for value in _call(node, inputs)]
            if all(name in invariant for name in node.inputs if name):
                invariant.update(
                    {
                        name: value.constant
                        for name, value in _named(node, results)
                        if value.constant is not None
                    }
                )
        else:
            results = _call(node, inputs)
        env.update(_named(node, results))
    return env


def _taken_branch(
    graph: Graph, node: Node, env: dict[str, Value], invariant: dict[str, np.ndarray]
) -> list[Node]:
    """The nodes that an If stands for: its condition must follow from shapes, whatever the batch."""
    condition = env[node.inputs[0]].constant
    if condition is None:
        raise node.unsupported("its condition depends on the pixels")
    graph.decided.append(node.inputs[0])
    branch = node.branches["then_branch" if condition.all() else "else_branch"]
    # Branches side by side may use the same names for different values: here they become one graph.
    branch.rename({name: graph.fresh_name(f"{node.name}/{name}") for name in branch.defined_names()})
    graph.constants.update(branch.constants)
    invariant.update(branch.constants)
    env.update({name: Value.const(array) for name, array in branch.constants.items()})
    links = [
        Node(op_type="Identity", inputs=[inner], outputs=[outer], name=node.name, opset=node.opset)
        for inner, outer in zip(branch.outputs, node.outputs, strict=True)
    ]
    return [*branch.nodes, *links]


def _evaluate(value: Value) -> np.ndarray:
    return value.constant if value.constant is not None else value.logical().numpy()


def emit(graph: Graph, feeds: Mapping[str, Value]) -> list[Value]:
    """Emit the operators into the current TensorFlow graph; returns the graph's outputs."""
    env: dict[str, Value] = dict(feeds)

    def read(name: str) -> Value | None:
        if not name:
            return None
        if name not in env:
            env[name] = _settled(graph, name)
        return env[name]

    remaining_uses = {name: len(nodes) for name, nodes in graph.consumers().items()}
    for node in graph.nodes:
        results = _call(node, [read(name) for name in node.inputs])
        for (name, value), dims in zip(_named(node, results), _dims_of(node), strict=True):
            value.dims = dims
            env[name] = value
        for name in node.inputs:
            remaining_uses[name] = remaining_uses.get(name, 0) - 1
            if not remaining_uses[name] and name not in graph.outputs:
                env.pop(name, None)
    outputs = [read(name) for name in graph.outputs]
    return [value for value in outputs if value is not None]


def _settled(graph: Graph, name: str) -> Value:
    """A value that needs no operator: a constant, or an integer that follows the batch."""
    if name in graph.constants:
        value = Value.const(graph.constants[name])
        value.dims = static_dims(graph.constants[name].shape, len(current_run.get().batch_sizes))
        return value
    fact = graph.facts[name]
    if fact.constant is not None:
        value = Value.const(fact.constant)
    else:
        assert fact.affine is not None, name
        value = Value.batch_affine(*fact.affine, tf.int64)
    value.dims = fact.dims
    return value


def _dims_of(node: Node) -> list[Dims]:
    assert node.out_dims is not None, node
    return [dims for name, dims in zip(node.outputs, node.out_dims, strict=True) if name]


def _named(node: Node, results: Sequence[Value]) -> list[tuple[str, Value]]:
    return [(name, value) for name, value in zip(node.outputs, results, strict=False) if name]


def _call(node: Node, inputs: Sequence[Value | None]) -> list[Value]:
    handler = handler_for(node)
    try:
        results = handler(node, *inputs)
    except LoweringError:
        raise
    except Exception as error:
        raise node.unsupported(f"{type(error).__name__} while lowering it: {error}") from error
    results = [results] if isinstance(results, Value) else list(results)
    if any(node.outputs[len(results) :]):
        wanted = ", ".join(repr(name) for name in node.outputs[len(results) :] if name)
        raise node.unsupported(
            f"its further output {wanted} is read, and is not computed; export in evaluation mode"
        )
    return results
