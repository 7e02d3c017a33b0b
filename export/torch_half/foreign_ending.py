"""How an ONNX file from elsewhere ends: its logits become the one output, whatever was put behind them.

The signatures put softmax or sigmoid on the logits themselves. A file that has done so already must lose it, or
every probability that is served is wrong while every parity gate is green: the gates compare with the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.export.errors import ExportError

#: They change how numbers are laid out or stored, not what they say.
_SHAPE_ONLY = frozenset(
    {"Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
)
_PROBABILITIES = frozenset({"Softmax", "Sigmoid"})
#: float16's steps near 1 are 0.0005.
_SAME_PROBABILITY = 2e-3
_ROW_SUM = 1e-2


def choose_output(proto: Any, wanted: str | None, file: Path) -> None:
    """Leave the output with the logits, and of the graph what it needs.

    Args:
        proto: onnx.ModelProto; changed.
        wanted: The output's name; None: the only one.
        file: Where it came from, for the message.

    Raises:
        ExportError: Several outputs and no name, or a name that none has.
    """
    graph = proto.graph
    names = [value.name for value in graph.output]
    if wanted is None and len(names) != 1:
        raise ExportError(
            f"{file} has {len(names)} outputs ({', '.join(names)}); say which with --onnx-output NAME"
        )
    if wanted is not None and wanted not in names:
        raise ExportError(f"{file} has no output {wanted!r}; it has {', '.join(names)}")
    _keep(graph.output, lambda value: value.name == (wanted or names[0]))
    prune(graph)


def prune(graph: Any) -> None:
    """Drop the nodes and weights of an onnx.GraphProto that its outputs do not need; its inputs stay."""
    needed = {value.name for value in graph.output}
    # Nodes are in an order in which they can be computed: ONNX's checker sees to it. "" is an input left out.
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= reads(node) - {""}
    _keep(graph.node, lambda node: bool(needed.intersection(node.output)))
    inputs = {value.name for value in graph.input}
    _keep(graph.initializer, lambda tensor: tensor.name in needed or tensor.name in inputs)


def _keep(entries: Any, wanted: Callable[[Any], bool]) -> None:
    """Of a repeated field the entries that are wanted."""
    for place in reversed(range(len(entries))):
        if not wanted(entries[place]):
            del entries[place]


def reads(node: Any) -> set[str]:
    """What a node reads, the graphs inside it too: those see the values around them."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names |= {value.name for value in graph.output}
            names = names.union(*(reads(inner) for inner in graph.node))
    return names


def cut_probabilities(proto: Any) -> str | None:
    """Let what enters a final Softmax or Sigmoid through; returns the operator's name, None where there is none.

    Only one is cut: what a second one gets is what the signatures will get.

    Args:
        proto: onnx.ModelProto with one output; changed.
    """
    made_by = {name: node for node in proto.graph.node for name in node.output}
    node = made_by.get(proto.graph.output[0].name)
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in _PROBABILITIES:
        return None
    name = str(node.op_type)
    # Not removed: a Shape may read it too.
    node.op_type = "Identity"
    del node.attribute[:]
    return name


def check_cut(name: str, probabilities: np.ndarray, logits: np.ndarray) -> None:
    """Whether the signatures will give the probabilities that the file gave, on one batch.

    Args:
        name: "Softmax" or "Sigmoid".
        probabilities: The file's answers as it came, [N, C].
        logits: Its answers without that operator, [N, C].

    Raises:
        ExportError: They will not: the operator works along another axis.
    """
    served = _softmax(logits) if name == "Softmax" else _sigmoid(logits)
    error = float(np.abs(served - probabilities.astype(np.float64)).max())
    if not error <= _SAME_PROBABILITY:
        raise ExportError(
            f"the graph's final {name} is not over the classes: {name.lower()} of what enters it differs from the "
            f"file's answers by {error:.2g}; export the model without it"
        )


def check_logits(answers: np.ndarray, *, head: str, head_given: bool) -> None:
    """Refuse answers that are probabilities although no Softmax or Sigmoid was found to cut.

    A softmax written out (Exp, ReduceSum, Div) is one: the signatures would put a second one on it.

    Args:
        answers: The file's answers for the reference images, float32 [N, C].
        head: "single_label" or "multi_label".
        head_given: Whether the user said which.

    Raises:
        ExportError: Every answer lies in [0, 1], and the rows sum to 1, or the head is multi_label, or nobody
            said that it is not.
    """
    if not (answers.min() >= -_SAME_PROBABILITY and answers.max() <= 1 + _SAME_PROBABILITY):
        return
    sums_to_one = bool(np.abs(answers.sum(axis=1, dtype=np.float64) - 1).max() <= _ROW_SUM)
    if head == "single_label" and head_given and not sums_to_one:
        return
    kind = "softmax" if sums_to_one else "sigmoid"
    otherwise = (
        "" if sums_to_one or head == "multi_label" else ", or give --head single_label if they are logits"
    )
    raise ExportError(
        f"all answers of the file for the {len(answers)} reference images lie in [0, 1]"
        f"{' and each sums to 1' if sums_to_one else ''}: they are probabilities, not logits, and the served model "
        f"would put another {kind} on them; export the model without its final {kind}{otherwise}"
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # tanh does not overflow.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))
