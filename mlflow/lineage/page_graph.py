"""A chain as a picture: boxes in layers, what something was made from before it, as inline SVG.

Drawn twice, from left to right for a desktop and from top to bottom for a phone; the page's style shows one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from isthmus.lineage.chain import Node
from isthmus.lineage.render import short

Direction = Literal["across", "down"]

WORLD = {
    "data": "source",
    "code": "source",
    "weights": "torch",
    "training": "torch",
    "onnx": "onnx",
    "export": "onnx",
    "parity": "onnx",
    "saved_model": "tensorflow",
    "evaluation": "tensorflow",
    "served": "tensorflow",
    "version": "registry",
}
"""Whose thing a node is; the page's style gives each a colour."""

_PHONE_WIDTH = 360

_QUESTIONS = ("checkpoint", "commit", "digest")
"""Roots that are what was asked about, and not a thing of their own in the chain."""


@dataclass
class _Box:
    node: Node
    anchor: str
    """The id of its section on the page."""
    depth: int
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class _Measures:
    """Sizes in the unit of the picture (pixels when it is shown unscaled)."""

    width: float
    height: float
    along: float
    """From the start of one layer to the start of the next."""
    beside: float
    """From one box of a layer to the next."""


_MEASURES: dict[Direction, _Measures] = {
    "across": _Measures(width=150, height=72, along=186, beside=92),
    "down": _Measures(width=112, height=72, along=104, beside=120),
}


@dataclass
class _Graph:
    boxes: dict[tuple[str, str], _Box] = field(default_factory=dict)
    edges: dict[tuple[tuple[str, str], tuple[str, str]], None] = field(default_factory=dict)


def svg(root: Node, *, direction: Direction, statuses: Mapping[str, str]) -> str:
    """The chain as an SVG element; `statuses` is {node kind: holds, broken or unknown}, for the dots."""
    graph = _graph(root)
    measures = _MEASURES[direction]
    width, height = _place(graph, direction, measures)
    parts = [_edge(graph.boxes[start], graph.boxes[end], direction, measures) for start, end in graph.edges]
    parts += [_box(box, measures, statuses.get(box.node.kind)) for box in graph.boxes.values()]
    # A picture that is too wide for a phone is scrolled, not shrunk until nobody can read it.
    least = f"min-width:{width:g}px;" if direction == "down" and width > _PHONE_WIDTH else ""
    label = f"{len(graph.boxes)} things that {escape(root.label)} consists of and came from"
    return (
        f'<svg class="graph {direction}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}" '
        f'style="{least}max-width:{width:g}px">{"".join(parts)}</svg>'
    )


def _graph(root: Node) -> _Graph:
    graph = _Graph()
    roots = root.children if root.kind in _QUESTIONS and root.children else [root]
    for each in roots:
        _add(graph, each, depth=1, parent=None)
    return graph


def _key(node: Node, parent: tuple[str, str] | None) -> tuple[str, str]:
    """What makes a thing itself; one without an id belongs to what it is part of."""
    return node.kind, node.id or f"of {parent[1] if parent else node.label}"


def _add(graph: _Graph, node: Node, *, depth: int, parent: tuple[str, str] | None) -> None:
    """The same thing under two parents (one data set of two models) is one box, as deep as its deepest place."""
    key = _key(node, parent)
    # What serves comes out of the version; everything else went into what is above it.
    own_depth = depth - 2 if node.kind == "served" else depth
    anchor = f"{node.kind}-{len(graph.boxes)}"
    box = graph.boxes.setdefault(key, _Box(node, anchor, own_depth))
    box.depth = max(box.depth, own_depth)
    if parent is not None:
        graph.edges[(parent, key) if node.kind == "served" else (key, parent)] = None
    for child in node.children:
        _add(graph, child, depth=own_depth + 1, parent=key)


def _place(graph: _Graph, direction: Direction, measures: _Measures) -> tuple[float, float]:
    """Give every box its place; returns the size of the picture."""
    deepest = max(box.depth for box in graph.boxes.values())
    layers: dict[int, list[_Box]] = {}
    for box in graph.boxes.values():
        layers.setdefault(deepest - box.depth, []).append(box)
    numbers = {layer: index for index, layer in enumerate(sorted(layers))}
    widest = max(len(layer) for layer in layers.values())
    size = measures.height if direction == "across" else measures.width
    across = (widest - 1) * measures.beside + size
    for layer, boxes in layers.items():
        start = (across - ((len(boxes) - 1) * measures.beside + size)) / 2
        for index, box in enumerate(boxes):
            along, beside = numbers[layer] * measures.along + 2, start + index * measures.beside + 2
            box.x, box.y = (along, beside) if direction == "across" else (beside, along)
    length = (len(layers) - 1) * measures.along
    if direction == "across":
        return length + measures.width + 4, across + 4
    return across + 4, length + measures.height + 4


def _edge(start: _Box, end: _Box, direction: Direction, measures: _Measures) -> str:
    if direction == "across":
        x1, y1 = start.x + measures.width, start.y + measures.height / 2
        x2, y2 = end.x, end.y + measures.height / 2
        middle = (x1 + x2) / 2
        curve = f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
    else:
        x1, y1 = start.x + measures.width / 2, start.y + measures.height
        x2, y2 = end.x + measures.width / 2, end.y
        middle = (y1 + y2) / 2
        curve = f"M{x1:g} {y1:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
    return f'<path class="edge" d="{curve}"/>'


def _box(box: _Box, measures: _Measures, status: str | None) -> str:
    node = box.node
    texts = "".join(
        f'<text x="10" y="{y}" class="{name}">{escape(_cut(line, measures.width - room))}</text>'
        for y, (name, line, room) in zip((20, 38, 56), _lines(node, marked=status is not None), strict=False)
    )
    dot = (
        ""
        if status is None
        else f'<circle class="dot {status}" cx="{measures.width - 12:g}" cy="34" r="6"/>'
        f'<text class="mark" x="{measures.width - 12:g}" y="37.5">{_MARKS[status]}</text>'
    )
    title = escape(" · ".join(filter(None, [node.label, node.id, f"link {status}" if status else None])))
    return (
        f'<a href="#{box.anchor}"><g class="box {WORLD.get(node.kind, "source")}" '
        f'transform="translate({box.x:g} {box.y:g})"><title>{title}</title>'
        f'<rect width="{measures.width:g}" height="{measures.height:g}" rx="8"/>{texts}{dot}</g></a>'
    )


_MARKS = {"holds": "✓", "broken": "✕", "unknown": "?"}


def _lines(node: Node, *, marked: bool) -> Iterator[tuple[str, str, int]]:
    """(style, text, width that it leaves free) of each line."""
    yield "name", node.label, 16
    yield "id", _short_id(node), 30 if marked else 16
    if fact := _telling_fact(node):
        yield "fact", fact, 16


def _short_id(node: Node) -> str:
    if node.id is None:
        return ""
    if node.kind == "served":
        return f"…/{node.id.rstrip('/').rpartition('/')[2]}"
    return short(node.id)


def _telling_fact(node: Node) -> str:
    facts = node.facts
    if node.kind == "version":
        return ", ".join(facts.get("aliases") or [])
    for key in ("model", "name", "accuracy", "rung", "test_top1"):
        value = facts.get(key)
        if value is not None:
            return f"{key} {value:.4g}" if isinstance(value, float) else str(value)
    if node.kind == "code":
        return {"True": "uncommitted changes", "False": "clean"}.get(str(facts.get("dirty")), "")
    return ""


def _cut(text: str, room: float) -> str:
    limit = int(room / 6.6)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def sections(root: Node) -> Sequence[tuple[str, Node]]:
    """(anchor, thing) of everything in the picture once, what serves first and the sources last."""
    graph = _graph(root)
    return [(box.anchor, box.node) for box in sorted(graph.boxes.values(), key=lambda box: box.depth)]
