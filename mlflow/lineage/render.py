"""A chain as a tree of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isthmus.lineage.chain import Chain, Node
from isthmus.lineage.verify import LinkCheck

_SHORT = 12
_HEX = re.compile(r"[0-9a-f]{32,64}")


def tree(chain: Chain) -> str:
    """The chain as lines of a tree, digests cut to 12 characters (the JSON value has them whole)."""
    return "\n".join([_line(chain.root), *_branches(chain.root.children, "")])


def _branches(children: Sequence[Node], indent: str) -> list[str]:
    lines = []
    for index, child in enumerate(children):
        last = index == len(children) - 1
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{_line(child)}")
        lines += _branches(child.children, indent + ("   " if last else "│  "))
    return lines


def _line(node: Node) -> str:
    shown = [] if node.kind == "version" else [short(node.id)] if node.id else []
    parts = [" ".join([node.label, *shown])]
    parts += [text for key, value in node.facts.items() if (text := _fact(key, value))]
    return " · ".join(parts)


def _fact(key: str, value: Any) -> str:
    if value is None or value in ({}, []) or key in _HIDDEN:
        return ""
    if key in _OWN_WORDS:
        return _OWN_WORDS[key](value)
    if key in _PLAIN:
        return text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {text(content)}" for inner, content in value.items())
    return f"{key.replace('_', ' ')} {text(value)}"


def _champion(terms: Sequence[Mapping[str, Any]]) -> str:
    last = terms[-1]
    span = (
        f"from {when(last['since'])} to {when(last['until'])}"
        if last["until"]
        else f"since {when(last['since'])}"
    )
    return f"champion {span} by {last['by']} ({last['why']})"


def _registered(moment: str) -> str:
    return f"registered {when(moment)}" if moment != "no" else "not registered"


def _status(status: str) -> str:
    return "" if status == "FINISHED" else status.lower()


_HIDDEN = {"user"}
_PLAIN = {"name", "model", "model_id", "note"}


def text(value: Any) -> str:
    """A fact's value: digests short, floats to four digits, the rest as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return short(value) if isinstance(value, str) else str(value)


def short(value: str | None) -> str:
    """The first 12 characters of a digest, run id, model id or commit; anything else whole."""
    if value is None:
        return ""
    prefix = "m-" if value.startswith("m-") else ""
    rest = value.removeprefix(prefix)
    return prefix + rest[:_SHORT] if _HEX.fullmatch(rest) else value


def when(moment: str) -> str:
    """An ISO time to the minute: `2026-11-22 10:04`, always UTC."""
    return f"{moment[:10]} {moment[11:16]} UTC"


_OWN_WORDS: dict[str, Callable[[Any], str]] = {
    "aliases": ", ".join,
    "champion": _champion,
    "dirty": lambda dirty: "with uncommitted changes" if dirty else "clean",
    "present": lambda present: "" if present else "NOT THERE",
    "registered": _registered,
    "started": when,
    "status": _status,
}


def checks(results: Sequence[LinkCheck]) -> str:
    """One line for each link that was verified, and a last one that sums up."""
    width = max((len(result.link) for result in results), default=0)
    lines = [f"{result.status:7}  {result.link:{width}}  {result.detail}" for result in results]
    counts = Counter(result.status for result in results)
    return "\n".join(
        [*lines, ", ".join(f"{counts[status]} {status}" for status in ("holds", "broken", "unknown"))]
    )
