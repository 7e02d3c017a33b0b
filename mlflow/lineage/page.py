"""`isthmus lineage … --html PAGE.html`: one file that needs nothing else, for a phone and a desktop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from isthmus.lineage import history, page_graph
from isthmus.lineage.chain import Chain, Node
from isthmus.lineage.page_style import STYLE
from isthmus.lineage.render import text, when
from isthmus.lineage.verify import LinkCheck, worst
from isthmus.lineage.versions import store_client

_NODE_OF_LINK = {
    "registry → history": "version",
    "version → manifest": "version",
    "version → served files": "served",
    "manifest → served files": "served",
    "signature → served files": "served",
    "signature → bundle files": "saved_model",
    "version → bundle": "saved_model",
    "manifest → bundle files": "saved_model",
    "SavedModel → MLflow model": "saved_model",
    "ONNX → MLflow model": "onnx",
    "SavedModel → export run": "export",
    "version → pipeline run": "evaluation",
    "weights → checkpoint": "weights",
    "weights → training run": "training",
    "weights → data": "data",
    "training run → commit": "code",
}
"""The box that shows the verdict of a link."""

_LEGEND = {
    "source": "code and data",
    "torch": "PyTorch",
    "onnx": "the bridge: ONNX, export, parity",
    "tensorflow": "TensorFlow: SavedModel, TFX, serving",
    "registry": "MLflow registry",
}
_WORDS = {
    "holds": "every link that was checked holds",
    "unknown": "no link is broken; some could not be checked",
    "broken": "a link is broken",
}
_MAX_DRAWN = 60
"""More boxes than this are no picture any more; the sections below have them all."""


def html(chain: Chain, checks: Sequence[LinkCheck] = ()) -> str:
    """The whole page: picture, verdicts, history of the aliases, and every fact with its digests in full.

    It asks for nothing over the network, which its own Content-Security-Policy forbids, too.
    """
    body = "".join(
        [
            _head(chain, checks),
            _picture(chain, checks),
            _verdicts(checks),
            *(_history(name) for name in _names(chain)),
            '<h2>Everything in the chain</h2><div class="cards">',
            *(_card(anchor, node) for anchor, node in page_graph.sections(chain.root)),
            "</div>",
        ]
    )
    title = escape(f"{chain.root.label}: where it came from")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _names(chain: Chain) -> list[str]:
    return sorted({record.version.name for record in chain.records if record.version is not None})


def _head(chain: Chain, checks: Sequence[LinkCheck]) -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    aliases = "".join(
        f'<span class="alias">{escape(a)}</span>' for a in chain.root.facts.get("aliases") or []
    )
    verdict = ""
    if checks:
        verdict = f'<p class="verdict {worst(list(checks))}">{_WORDS[worst(list(checks))]}</p>'
    asked = escape(chain.subject)
    return (
        f"<header><h1>{escape(chain.root.label)} {aliases}</h1>"
        f"<p>Asked about <code>{asked}</code>, answered {when(now)}.</p>{verdict}</header>"
    )


def _picture(chain: Chain, checks: Sequence[LinkCheck]) -> str:
    drawn = [node for _, node in page_graph.sections(chain.root)]
    if len(drawn) > _MAX_DRAWN:
        return ""
    statuses = _statuses(checks) if len(chain.records) == 1 else {}
    pictures = "".join(
        page_graph.svg(chain.root, direction=direction, statuses=statuses) for direction in ("across", "down")
    )
    present = {page_graph.WORLD.get(node.kind, "source") for node in drawn}
    legend = "".join(
        f'<li class="{world}">{words}</li>' for world, words in _LEGEND.items() if world in present
    )
    return f'<figure>{pictures}<figcaption><ul class="legend">{legend}</ul></figcaption></figure>'


def _statuses(checks: Sequence[LinkCheck]) -> dict[str, str]:
    by_node: dict[str, list[LinkCheck]] = {}
    for check in checks:
        if check.link in _NODE_OF_LINK:
            by_node.setdefault(_NODE_OF_LINK[check.link], []).append(check)
    return {kind: worst(found) for kind, found in by_node.items()}


def _verdicts(checks: Sequence[LinkCheck]) -> str:
    if not checks:
        return ""
    rows = "".join(
        f'<tr><td><span class="state {check.status}">{check.status}</span></td>'
        f"<td>{escape(check.link)}</td><td>{escape(check.detail)}</td></tr>"
        for check in checks
    )
    return f'<h2>Every link, recomputed</h2><div class="wide"><table><tbody>{rows}</tbody></table></div>'


def _history(name: str) -> str:
    entries = history.read(store_client(), name)
    rows = "".join(_move(entry) for entry in reversed(entries))
    return (
        f"<h2>History of {escape(name)}</h2>"
        '<div class="wide"><table><thead><tr><th>when</th><th>alias</th><th>version</th><th>by</th><th>why</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _move(entry: history.Entry) -> str:
    origin = "–" if entry.from_version is None else str(entry.from_version)
    approved = f", approved by {escape(entry.approved_by)}" if entry.approved_by else ""
    why = (
        escape(entry.why) if entry.effective else f"changed nothing, another came first ({escape(entry.why)})"
    )
    verdicts = _details("verdicts", entry.verdicts) if entry.verdicts else ""
    return (
        f'<tr class="{"" if entry.effective else "lost"}"><td>{when(entry.when)}</td>'
        f'<td><span class="alias">{entry.alias}</span></td><td>{origin} → {entry.to_version}</td>'
        f"<td>{escape(entry.by)}{approved}</td><td>{why}{verdicts}</td></tr>"
    )


def _card(anchor: str, node: Node) -> str:
    facts = {key: value for key, value in node.facts.items() if value not in (None, "", {}, [])}
    identity = f"<p><code>{escape(node.id)}</code></p>" if node.id else ""
    return (
        f'<section class="card {page_graph.WORLD.get(node.kind, "source")}" id="{anchor}">'
        f"<h3>{escape(node.label)}</h3>{identity}{_list(facts)}</section>"
    )


def _list(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{_value(value)}</dd>" for key, value in facts.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _details(summary: str, facts: Mapping[str, Any]) -> str:
    return f"<details><summary>{escape(summary)}</summary>{_list(facts)}</details>"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _list(value)
    if isinstance(value, list):
        return "".join(f"<div>{_value(each)}</div>" for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return escape(value)
    return escape(text(value))
