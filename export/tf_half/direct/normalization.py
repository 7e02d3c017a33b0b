"""Batch, layer, group, instance, RMS and Lp normalisation."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.layout import elementwise
from isthmus.export.tf_half.direct.reductions import reduce_value
from isthmus.export.tf_half.direct.registry import constant_input, internal, op
from isthmus.export.tf_half.direct.values import Value


def _on_channels(parameter: np.ndarray, rank: int) -> Value:
    """A per-channel constant, shaped to broadcast along logical axis 1."""
    return Value.const(parameter.reshape(-1, *(1,) * (rank - 2)) if rank > 1 else parameter)


def _multiply_add(x: Value, scale: Value | None, shift: Value | None) -> Value:
    if scale is not None:
        x = elementwise(tf.multiply, x, scale)
    if shift is not None:
        x = elementwise(lambda a, b: tf.raw_ops.AddV2(x=a, y=b), x, shift)
    return x


@op("BatchNormalization", since=7)
def batch_normalization(node: Node, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> Value:
    """Inference only: one multiply-add with numbers computed here."""
    if node.attrs.get("training_mode", 0):
        raise node.unsupported("training_mode=1; export the model in evaluation mode")
    epsilon = node.attrs.get("epsilon", 1e-5)
    gamma, beta, mu, sigma2 = (
        constant_input(node, value, name).astype(np.float64)
        for value, name in ((scale, "scale"), (bias, "bias"), (mean, "mean"), (var, "variance"))
    )
    factor = gamma / np.sqrt(sigma2 + epsilon)
    dtype = x.dtype.as_numpy_dtype
    return _multiply_add(
        x,
        _on_channels(factor.astype(dtype), x.rank),
        _on_channels((beta - mu * factor).astype(dtype), x.rank),
    )


def normalize(x: Value, axes: list[int], epsilon: float) -> Value:
    """(x - mean) / sqrt(variance + epsilon) over logical axes.

    The variance is the mean square of what is left after the mean, and the scale is multiplied in last: no
    pattern of grappler's remapper matches. Its oneDNN LayerNorm would put 0.001 in the place of any epsilon.
    """
    tensor = x.tensor if x.constant is None else x.logical()
    stored = sorted(x.axis(axis) for axis in axes)
    mean = tf.reduce_mean(tensor, axis=stored, keepdims=True)
    centred = tensor - mean
    variance = tf.reduce_mean(tf.square(centred), axis=stored, keepdims=True)
    return Value.of(centred * tf.math.rsqrt(variance + np.array(epsilon, x.dtype.as_numpy_dtype)), x.order)


@op("LayerNormalization", since=17)
@internal("LayerNormalization")
def layer_normalization(node: Node, x: Value, scale: Value, bias: Value | None = None) -> Value:
    """Over the axes from `axis` on."""
    if any(node.outputs[1:]):
        raise node.unsupported("its Mean or InvStdDev output is read")
    axis = node.attrs.get("axis", -1) % x.rank
    normalized = normalize(x, list(range(axis, x.rank)), node.attrs.get("epsilon", 1e-5))
    return _multiply_add(normalized, scale, bias)


@op("RMSNormalization", since=23)
def rms_normalization(node: Node, x: Value, scale: Value) -> Value:
    """x / sqrt(mean(x²) + epsilon) over the axes from `axis` on, times scale."""
    axis = node.attrs.get("axis", -1) % x.rank
    epsilon = np.float32(node.attrs.get("epsilon", 1e-5))
    mean = reduce_value(elementwise(tf.square, x), list(range(axis, x.rank)), True, tf.reduce_mean)
    inverse = elementwise(lambda tensor: tf.math.rsqrt(tensor + epsilon), mean)
    return elementwise(tf.multiply, elementwise(tf.multiply, x, inverse), scale)


@op("InstanceNormalization", since=6)
def instance_normalization(node: Node, x: Value, scale: Value, bias: Value) -> Value:
    """Over the spatial axes of each channel of each image."""
    normalized = normalize(x, list(range(2, x.rank)), node.attrs.get("epsilon", 1e-5))
    gamma = constant_input(node, scale, "scale")
    beta = constant_input(node, bias, "bias")
    return _multiply_add(
        normalized,
        None if (gamma == 1).all() else _on_channels(gamma, x.rank),
        None if (beta == 0).all() else _on_channels(beta, x.rank),
    )


@op("GroupNormalization", since=21)
@internal("GroupNormalization")
def group_normalization(node: Node, x: Value, scale: Value, bias: Value) -> Value:
    """Channels in num_groups groups, each normalised with its pixels; scale and bias per channel."""
    gamma, beta = constant_input(node, scale, "scale"), constant_input(node, bias, "bias")
    normalized = _normalize_groups(node, x)
    return _multiply_add(normalized, _on_channels(gamma, x.rank), _on_channels(beta, x.rank))


@op("GroupNormalization", since=18)
def group_normalization_18(node: Node, x: Value, scale: Value, bias: Value) -> Value:
    """Until opset 20 scale and bias are per group."""
    per_group = x.known_dims()[1][0] // node.attrs["num_groups"]
    gamma = np.repeat(constant_input(node, scale, "scale"), per_group)
    beta = np.repeat(constant_input(node, bias, "bias"), per_group)
    normalized = _normalize_groups(node, x)
    return _multiply_add(normalized, _on_channels(gamma, x.rank), _on_channels(beta, x.rank))


def _normalize_groups(node: Node, x: Value) -> Value:
    """Statistics per channel first, then averaged within groups: the large tensor never changes its shape."""
    groups, epsilon = node.attrs["num_groups"], np.float32(node.attrs.get("epsilon", 1e-5))
    if groups == 1:
        return normalize(x, list(range(1, x.rank)), float(epsilon))
    channels = x.known_dims()[1][0]

    def group_mean(tensor: Value) -> Value:
        per_channel = reduce_value(tensor, list(range(2, x.rank)), True, tf.reduce_mean)
        grouped = tf.reshape(per_channel.logical(), [-1, groups, channels // groups])
        mean = tf.tile(tf.reduce_mean(grouped, axis=2, keepdims=True), [1, 1, channels // groups])
        return Value.of(tf.reshape(mean, [-1, channels, *(1,) * (x.rank - 2)]))

    centred = elementwise(tf.subtract, x, group_mean(x))
    variance = group_mean(elementwise(tf.square, centred))
    inverse = elementwise(lambda tensor: tf.math.rsqrt(tensor + epsilon), variance)
    return elementwise(tf.multiply, centred, inverse)


@op("LpNormalization")
def lp_normalization(node: Node, x: Value) -> Value:
    """Divide by the L1 or L2 norm along an axis."""
    axis, power = node.attrs.get("axis", -1), node.attrs.get("p", 2)
    if power == 1:
        norm = reduce_value(elementwise(tf.abs, x), [axis], True, tf.reduce_sum)
    else:
        squares = reduce_value(elementwise(tf.square, x), [axis], True, tf.reduce_sum)
        norm = elementwise(tf.sqrt, squares)
    return elementwise(tf.math.divide_no_nan, x, norm)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Node, x: Value) -> Value:
    """(x - mean) / (standard deviation + 1e-9)."""
    axes = node.attrs.get("axes", [0, 2, 3])
    mean = reduce_value(x, axes, True, tf.reduce_mean)
    centred = elementwise(tf.subtract, x, mean)
    variance = reduce_value(elementwise(tf.square, centred), axes, True, tf.reduce_mean)
    return elementwise(lambda a, b: a / (tf.sqrt(b) + np.float32(1e-9)), centred, variance)


@op("LRN")
def local_response_normalization(node: Node, x: Value) -> Value:
    """Divide by a power of the squares summed over neighbouring channels."""
    size = node.attrs["size"]
    alpha, beta, bias = (node.attrs.get(k, d) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    order = (0, *range(2, x.rank), 1)
    tensor = x.stored(order)
    before, after = (size - 1) // 2, size // 2
    channels = tensor.shape[-1]
    band = np.zeros((channels, channels), np.float32)
    for channel in range(channels):
        band[max(0, channel - before) : channel + after + 1, channel] = 1
    sums = tf.tensordot(tf.square(tensor), band, 1)
    return Value.of(tensor / tf.pow(bias + np.float32(alpha / size) * sums, np.float32(beta)), order)
