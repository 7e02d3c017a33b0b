"""int8 arithmetic in a frozen graph, by operators that stock TensorFlow has kernels for on x86.

A convolution or matrix product with constant weights becomes

    QuantizeV2 → QuantizedConv2DWithBias → qint32 → × scale → float32

- weights: int8, symmetric, one scale for each output channel; a quarter of the bytes;
- activations: one scale for each tensor, from calibration images; 8 bits without a sign where the calibration saw
  nothing below 0 (after a ReLU), else with one. Zero stays zero, so padding is right;
- products are summed in int32 by oneDNN (VNNI instructions where the CPU has them);
- a matrix product is the same as a convolution with a 1 × 1 filter, whose kernel also takes signed activations,
  which `QuantizedMatMulWithBias` does not.

All the rest stays float32: what works on activations only (attention's two products), depthwise and grouped
convolutions, normalisation, and the last product, the logits. The `Uniform…` operators of TensorFlow's own
quantizer have no oneDNN kernels; see docs/precision.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2, tensor_pb2

from isthmus.export.errors import ExportError
from isthmus.export.reduced import Evaluation, in_chunks
from isthmus.export.tf_half.bfloat16 import last_products

_LARGEST = 127
_LARGEST_UNSIGNED = 255
_CHUNK = 8
#: Values of each activation that are kept of each chunk, to choose its range with.
_KEPT = 4096
_CANDIDATES = np.linspace(0.3, 1.0, 29)
_SUFFIX = "int8"


@dataclass(frozen=True, kw_only=True)
class Product:
    """One operation that will be computed in integers."""

    operation: tf.Operation
    """Conv2D or MatMul."""

    weights: np.ndarray
    """float32 [kernel height, kernel width, in, out]; of a matrix product [1, 1, in, out]."""

    @property
    def activation(self) -> tf.Tensor:
        """What comes in."""
        return self.operation.inputs[0]


@dataclass(frozen=True, kw_only=True)
class Range:
    """How an activation is rounded."""

    largest: float
    """The value that the largest integer stands for."""

    is_signed: bool
    """Whether anything is below 0."""

    @property
    def scale(self) -> float:
        """What the integer 1 stands for."""
        return self.largest / (_LARGEST if self.is_signed else _LARGEST_UNSIGNED)


def rewritten(
    graph: graph_pb2.GraphDef, *, image: str, output: str, calibration: Evaluation
) -> graph_pb2.GraphDef:
    """A frozen graph (float32 in and out), its products with constant weights in integers.

    Args:
        graph: Without variables.
        image: Name of the input tensor.
        output: Name of the operation that gives the logits.
        calibration: Images like those that the model will see.

    Returns:
        A graph with the same names for the same values.

    Raises:
        ExportError: The graph has no such product, or gives no finite numbers on these images.
    """
    imported = tf.Graph()
    with imported.as_default():
        tf.graph_util.import_graph_def(graph, name="")
    products = quantizable(imported, output=output)
    if not products:
        raise ExportError("int8: the model has no convolution or matrix product with constant weights")
    activations = {product.activation.name: product.activation for product in products}
    ranges = _ranges(imported, activations, image=image, calibration=calibration)
    return _rewrite(imported, products, ranges, output=output)


def quantizable(graph: tf.Graph, *, output: str) -> list[Product]:
    """The operations that can be computed in integers, in the graph's order; the last products are not among them."""
    operations = graph.get_operations()
    left_out = last_products(operations) | {output}
    found = []
    for operation in operations:
        if operation.name in left_out or len(operation.inputs) != 2:
            continue
        weights = _constant(operation.inputs[1])
        if weights is None or weights.dtype != np.float32:
            continue
        if operation.type == "Conv2D" and _is_plain(operation, weights):
            found.append(Product(operation=operation, weights=weights))
        elif operation.type == "MatMul" and not operation.get_attr("transpose_a"):
            matrix = weights.T if operation.get_attr("transpose_b") else weights
            found.append(Product(operation=operation, weights=matrix[None, None]))
    return found


def _is_plain(operation: tf.Operation, weights: np.ndarray) -> bool:
    channels = operation.inputs[0].shape[-1]
    return (
        operation.get_attr("data_format") == b"NHWC"
        and operation.get_attr("padding") in (b"SAME", b"VALID")
        and channels == weights.shape[2]
    )


def _constant(tensor: tf.Tensor) -> np.ndarray | None:
    operation = tensor.op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    return tf.make_ndarray(operation.get_attr("value")) if operation.type == "Const" else None


def _ranges(
    graph: tf.Graph, activations: Mapping[str, tf.Tensor], *, image: str, calibration: Evaluation
) -> dict[str, Range]:
    """Run the model on the calibration images and choose each activation's range."""
    random = np.random.default_rng(0)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in activations}
    largest, lowest = dict.fromkeys(activations, 0.0), dict.fromkeys(activations, 0.0)
    with tf.compat.v1.Session(graph=graph) as session:
        for rows in in_chunks(calibration, _CHUNK):
            values = session.run(dict(activations), {image: calibration.images(rows)})
            for name, value in values.items():
                flat = value.reshape(-1)
                if not np.isfinite(flat).all():
                    raise ExportError(f"int8: {name} is not finite on the calibration images")
                largest[name] = max(largest[name], float(np.abs(flat).max(initial=0.0)))
                lowest[name] = min(lowest[name], float(flat.min(initial=0.0)))
                samples[name].append(random.choice(flat, min(_KEPT, len(flat)), replace=False))
    return {
        name: _best_range(np.concatenate(samples[name]), largest[name], is_signed=lowest[name] < 0)
        for name in activations
    }


def _best_range(sample: np.ndarray, largest: float, *, is_signed: bool) -> Range:
    """The range that rounds and clips the sample with the smallest squared error."""
    if largest == 0.0:
        return Range(largest=1.0, is_signed=is_signed)

    def error(share: float) -> float:
        candidate = Range(largest=largest * share, is_signed=is_signed)
        bounds = (-_LARGEST, _LARGEST) if is_signed else (0, _LARGEST_UNSIGNED)
        rounded = np.clip(np.round(sample / candidate.scale), *bounds) * candidate.scale
        return float(np.square(rounded - sample).mean())

    # The largest value itself is not in the sample: a tie goes to the wider range.
    best = min(reversed(_CANDIDATES.tolist()), key=error)
    return Range(largest=largest * best, is_signed=is_signed)


def _rewrite(
    graph: tf.Graph, products: Iterable[Product], ranges: Mapping[str, Range], *, output: str
) -> graph_pb2.GraphDef:
    by_name = {product.operation.name: product for product in products}
    definition = graph.as_graph_def()
    nodes: list[node_def_pb2.NodeDef] = []
    quantized: set[str] = set()
    for node in definition.node:
        product = by_name.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        name, chosen = _reference(product.activation), ranges[product.activation.name]
        if name not in quantized:
            quantized.add(name)
            nodes += _quantize(name, chosen)
        nodes += _integer_product(product, chosen, quantized=f"{_flat(name)}/{_SUFFIX}")
    read = {name.removeprefix("^").split(":")[0] for node in nodes for name in node.input} | {output}
    return graph_pb2.GraphDef(
        node=[node for node in nodes if node.op != "Const" or node.name in read], versions=definition.versions
    )


def _reference(tensor: tf.Tensor) -> str:
    """A tensor as a graph's proto names it."""
    return str(tensor.name.removesuffix(":0"))


def _flat(name: str) -> str:
    return name.replace(":", "_")


def _quantize(name: str, chosen: Range) -> list[node_def_pb2.NodeDef]:
    """The activation in 8 bits: outputs are the integers and the two ends of their range."""
    base = f"{_flat(name)}/{_SUFFIX}"
    low = -chosen.largest if chosen.is_signed else 0.0
    return [
        _number(f"{base}/low", low),
        _number(f"{base}/high", chosen.largest),
        _node(
            "QuantizeV2",
            base,
            [name, f"{base}/low", f"{base}/high"],
            T=tf.qint8 if chosen.is_signed else tf.quint8,
            mode="SCALED",
            round_mode="HALF_TO_EVEN",
        ),
    ]


def _integer_product(product: Product, chosen: Range, *, quantized: str) -> list[node_def_pb2.NodeDef]:
    """Integers in, float32 out; the last node has the product's own name."""
    operation, base = product.operation, f"{product.operation.name}/{_SUFFIX}"
    num_in, num_out = product.weights.shape[2:]
    largest = np.abs(product.weights).max(axis=(0, 1, 2))
    largest = np.where(largest > 0, largest, 1.0).astype(np.float32)
    integers = np.clip(np.round(product.weights / largest * _LARGEST), -_LARGEST, _LARGEST).astype(np.int8)
    is_matrix = operation.type == "MatMul"
    nodes = [
        _weights(f"{base}/weights", integers),
        _numbers(f"{base}/largest", largest),
        _numbers(f"{base}/lowest", -largest),
        _numbers(f"{base}/no_bias", np.zeros(num_out, np.float32)),
        # oneDNN gives every channel's sums in the unit of the channel with the largest weight.
        _number(f"{base}/scale", chosen.scale * float(largest.max()) / _LARGEST),
    ]
    source = quantized
    if is_matrix:
        nodes += [
            _numbers(f"{base}/as_image", np.array([-1, 1, 1, num_in], np.int32)),
            _numbers(f"{base}/as_matrix", np.array([-1, num_out], np.int32)),
            _node(
                "Reshape", f"{base}/image", [quantized, f"{base}/as_image"], T=_type(chosen), Tshape=tf.int32
            ),
        ]
        source = f"{base}/image"
    wired = [
        source,
        *(f"{base}/{name}" for name in ("weights", "no_bias")),
        f"{quantized}:1",
        f"{quantized}:2",
    ]
    nodes.append(
        _node(
            "QuantizedConv2DWithBias",
            f"{base}/sums",
            [*wired, f"{base}/lowest", f"{base}/largest"],
            Tinput=_type(chosen),
            Tfilter=tf.qint8,
            out_type=tf.qint32,
            strides=[1, 1, 1, 1] if is_matrix else list(operation.get_attr("strides")),
            dilations=[1, 1, 1, 1] if is_matrix else list(operation.get_attr("dilations")),
            padding="VALID" if is_matrix else operation.get_attr("padding").decode(),
        )
    )
    nodes.append(_node("Bitcast", f"{base}/plain", [f"{base}/sums"], T=tf.qint32, type=tf.int32))
    last = f"{base}/plain"
    if is_matrix:
        nodes.append(
            _node("Reshape", f"{base}/matrix", [last, f"{base}/as_matrix"], T=tf.int32, Tshape=tf.int32)
        )
        last = f"{base}/matrix"
    return [
        *nodes,
        _node("Cast", f"{base}/float", [last], SrcT=tf.int32, DstT=tf.float32),
        _node("Mul", operation.name, [f"{base}/float", f"{base}/scale"], T=tf.float32),
    ]


def _type(chosen: Range) -> tf.DType:
    return tf.qint8 if chosen.is_signed else tf.quint8


def _node(op: str, name: str, inputs: Iterable[str], **attributes: Any) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(op=op, name=name, input=list(inputs))
    for key, value in attributes.items():
        attribute = node.attr[key]
        if isinstance(value, tf.DType):
            attribute.type = value.as_datatype_enum
        elif isinstance(value, bool):
            attribute.b = value
        elif isinstance(value, str):
            attribute.s = value.encode()
        else:
            attribute.list.i.extend(value)
    return node


def _number(name: str, value: float) -> node_def_pb2.NodeDef:
    return _numbers(name, np.float32(value))


def _numbers(name: str, values: np.ndarray | np.float32) -> node_def_pb2.NodeDef:
    node = _node("Const", name, [], dtype=tf.as_dtype(values.dtype))
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    return node


def _weights(name: str, integers: np.ndarray) -> node_def_pb2.NodeDef:
    """int8 values as a constant of type qint8, for which numpy has no plain type."""
    node = _numbers(name, integers)
    node.attr["dtype"].type = tf.qint8.as_datatype_enum
    tensor = tensor_pb2.TensorProto(dtype=tf.qint8.as_datatype_enum, tensor_content=integers.tobytes())
    tensor.tensor_shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    node.attr["value"].tensor.CopyFrom(tensor)
    return node
