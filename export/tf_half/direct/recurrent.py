"""Recurrent layers (timm's sequencer uses LSTMs)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from isthmus.export.tf_half.direct.graph import Node
from isthmus.export.tf_half.direct.registry import choice, constant_input, op
from isthmus.export.tf_half.direct.values import Value, graph_constant


@op("LSTM", since=7)
def lstm(
    node: Node,
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    lengths: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    peepholes: Value | None = None,
) -> list[Value]:
    """x [T, N, I] -> Y [T, D, N, H], Y_h and Y_c [D, N, H]; one kernel call per direction.

    Standard activations, no peepholes, all sequences of full length.
    """
    if lengths is not None or peepholes is not None or node.attrs.get("layout", 0) or "clip" in node.attrs:
        raise node.unsupported("sequence_lens, peepholes, layout=1 and clip")
    if node.attrs.get("activations", ["Sigmoid", "Tanh", "Tanh"] * 2)[:3] != ["Sigmoid", "Tanh", "Tanh"]:
        raise node.unsupported("activations other than Sigmoid, Tanh, Tanh")
    direction = choice(node, "direction", ("forward", "reverse", "bidirectional"), "forward")
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    weights, recurrence = constant_input(node, w, "W"), constant_input(node, r, "R")
    bias = (
        np.zeros((len(backward), 2 * weights.shape[1]), np.float32)
        if b is None
        else constant_input(node, b, "B")
    )
    sequence = x.logical()
    hidden = recurrence.shape[2]
    outputs, last_h, last_c = [], [], []
    for index, reverse in enumerate(backward):
        start = [
            tf.zeros([tf.shape(sequence)[1], hidden]) if value is None else value.logical()[index]
            for value in (initial_h, initial_c)
        ]
        kernel = np.concatenate([weights[index], recurrence[index]], 1)
        offsets = bias[index, : 4 * hidden] + bias[index, 4 * hidden :]
        y, h, c = _one_direction(sequence, kernel, offsets, start, reverse)
        outputs.append(y)
        last_h.append(h)
        last_c.append(c)
    return [Value.of(tf.stack(outputs, 1)), Value.of(tf.stack(last_h)), Value.of(tf.stack(last_c))]


def _one_direction(
    x: Any, kernel: np.ndarray, bias: np.ndarray, start: list[Any], reverse: bool
) -> tuple[Any, ...]:
    """kernel [4H, I + H] with ONNX's gate order i, o, f, c; TensorFlow's block kernel wants i, f, c, o."""
    inputs, outputs, forgets, cells = np.split(kernel, 4, axis=0)
    b_in, b_out, b_forget, b_cell = np.split(bias, 4)
    hidden = inputs.shape[0]
    sequence = tf.reverse(x, [0]) if reverse else x
    none = tf.zeros([hidden])
    result = tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.constant(x.shape[0], tf.int64) if x.shape[0] else tf.shape(x, tf.int64)[0],
        x=sequence,
        cs_prev=start[1],
        h_prev=start[0],
        w=graph_constant(np.ascontiguousarray(np.concatenate([inputs, forgets, cells, outputs], 0).T)),
        wci=none,
        wcf=none,
        wco=none,
        b=graph_constant(np.concatenate([b_in, b_forget, b_cell, b_out])),
        cell_clip=0,
        use_peephole=False,
    )
    y = tf.reverse(result.h, [0]) if reverse else result.h
    return y, result.h[-1], result.cs[-1]
