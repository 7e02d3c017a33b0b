"""The data report as HTML: verdict, images, anomalies, every feature drawn, copies and unreadable files.

One file without scripts, fonts or pictures from elsewhere: it opens from any folder and any object store. The plots
are SVG written here; colours are the same for a split everywhere and differ in lightness too.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 380, 150, 8, 20
_MOST_WORDS = 24
_MOST_ROWS = 100
_COLOURS = ("#1b4f8f", "#e08a1e", "#2f8f5b", "#8c8c8c", "#a8327f")
_DASHES = ("", "", "", "5 3", "2 2")

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2430; max-width: 1240px; margin: 2em auto; padding: 0 1.5em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.15em; margin-top: 2em } h3 { font-size: 1em; margin: 0 }
table { border-collapse: collapse; margin: .6em 0 }
th, td { text-align: left; padding: .25em .9em .25em 0; vertical-align: top }
th { border-bottom: 1px solid #c8ced8; font-weight: 600 } td { border-bottom: 1px solid #eceff3 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.verdict { padding: .7em 1em; border-radius: 6px; font-weight: 600 }
.good { background: #e3f4e8; color: #14532d } .bad { background: #fdE7e7; color: #7f1d1d }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(385px, 1fr)); gap: 1.2em }
.card { border: 1px solid #dde2ea; border-radius: 6px; padding: .8em } .card.wrong { border: 2px solid #b91c1c }
.muted { color: #5b6675; font-size: .88em } code { font-size: .9em } svg { display: block; width: 100%; height: auto }
.key span { display: inline-block; margin-right: 1.3em }
.key svg { display: inline; width: 28px; height: 10px; vertical-align: middle }
"""


@dataclass(kw_only=True, frozen=True)
class Feature:
    """One feature of one sample: numbers have buckets, words have shares."""

    mean: float = 0.0
    std: float = 0.0
    low: float = 0.0
    high: float = 0.0
    buckets: list[tuple[float, float, float]] = field(default_factory=list)
    """(from, to, number of images)."""
    shares: dict[str, float] = field(default_factory=dict)
    """{word: number of images}."""


@dataclass(kw_only=True, frozen=True)
class Sample:
    """A split, the earlier data, or what was served."""

    name: str
    num_images: int
    features: dict[str, Feature]


def page(samples: list[Sample], *, intake: dict[str, Any], findings: dict[str, Any]) -> str:
    """The whole page.

    Args:
        samples: What to draw, in the order of the legend.
        intake: ImageExampleGen's report.json.
        findings: ExampleValidator's findings.json.
    """
    anomalies = findings["anomalies"]
    source = intake["source"]
    span = f", span {source['span']}" if source["span"] else ""
    version = f", version {source['version']}" if source["version"] else ""
    splits = "the image's content" if source["splits"] == "hash" else "the source"
    names, wrong = _names(samples), {one["feature"] for one in anomalies}
    varying = [name for name in names if name in wrong or not _is_constant(name, samples)]
    parts = [
        f"<h1>Data report</h1><p class=muted><code>{_text(source['path'])}</code> ({source['kind']}{span}{version}; "
        f"splits by {splits})</p>",
        _verdict(anomalies),
        _anomaly_table(anomalies),
        "<h2>Images</h2>",
        _sample_table(samples),
        _key(samples),
        "<h2>Features</h2><p class=muted>Shares of each split's images. Numbers: ten equal buckets between each "
        "split's own smallest and largest value, drawn as density.</p>",
        "<div class=grid>",
        *(_card(name, samples, anomalies) for name in varying),
        "</div>",
        _constants(samples, names=[name for name in names if name not in varying]),
        _comparisons(findings["compared"]),
        _copies(intake["copies"]),
        _rejected(intake),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Data report</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _verdict(anomalies: list[dict[str, str]]) -> str:
    if not anomalies:
        return "<p class='verdict good'>No anomalies: the data passed.</p>"
    number = "1 anomaly" if len(anomalies) == 1 else f"{len(anomalies)} anomalies"
    return f"<p class='verdict bad'>{number}: nothing is pushed.</p>"


def _anomaly_table(anomalies: list[dict[str, str]]) -> str:
    rows = [
        [
            _text(one["where"]),
            f"<code>{_text(one['feature'])}</code>",
            _text(one["expected"]),
            _text(one["found"]),
        ]
        for one in anomalies
    ]
    return _table(["where", "feature", "expected", "found"], rows) if rows else ""


def _sample_table(samples: list[Sample]) -> str:
    named = ("brightness", "sharpness", "height", "width", "bytes")
    rows = []
    for sample in samples:
        row = [_text(sample.name), str(sample.num_images)]
        classes = sample.features.get("image/class/text")
        row.append(str(len(classes.shares)) if classes else "")
        row += [_spread(sample.features.get(f"image/{name}")) for name in named]
        rows.append(row)
    heads = ["", "images", "classes", *(f"{name}, mean ± std" for name in named)]
    return _table(heads, rows, numeric=True)


def _spread(feature: Feature | None) -> str:
    if feature is None:
        return ""
    return _number(feature.mean) + (f" ± {_number(feature.std)}" if feature.std else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _names(samples: list[Sample]) -> list[str]:
    """Every feature once; the index of the class is left to its name."""
    names = dict.fromkeys(name for sample in samples for name in sample.features)
    order = {"image/class/text": 0, "image/brightness": 1, "image/sharpness": 2}
    return sorted((n for n in names if n != "image/class/label"), key=lambda name: (order.get(name, 9), name))


def _card(name: str, samples: list[Sample], anomalies: list[dict[str, str]]) -> str:
    wrong = [one for one in anomalies if one["feature"] == name]
    drawn = [
        (index, sample.features[name]) for index, sample in enumerate(samples) if name in sample.features
    ]
    plot = _bars(drawn) if any(feature.shares for _, feature in drawn) else _histogram(drawn)
    notes = "".join(f"<p class=muted>{_text(one['where'])}: found {_text(one['found'])}</p>" for one in wrong)
    return (
        f"<div class='card{' wrong' if wrong else ''}'><h3><code>{_text(name)}</code></h3>{plot}{notes}</div>"
    )


def _is_constant(name: str, samples: list[Sample]) -> bool:
    """Whether every image of every sample has the same value."""
    features = [sample.features[name] for sample in samples if name in sample.features]
    words = {word for feature in features for word in feature.shares}
    return len(words) == 1 if words else len({value for f in features for value in (f.low, f.high)}) == 1


def _constants(samples: list[Sample], *, names: list[str]) -> str:
    said = []
    for name in names:
        feature = next(sample.features[name] for sample in samples if name in sample.features)
        said.append(f"<code>{_text(name)}</code> {_text(next(iter(feature.shares), f'{feature.low:g}'))}")
    return f"<p>The same in every image: {', '.join(said)}.</p>" if said else ""


def _histogram(drawn: list[tuple[int, Feature]]) -> str:
    low = min(feature.low for _, feature in drawn)
    high = max(feature.high for _, feature in drawn)
    if low == high:
        return f"<p>always {low:g}</p>"
    scale = (_WIDTH - 2 * _LEFT) / (high - low)
    outlines = [(index, _outline(feature, low, high)) for index, feature in drawn]
    top = max((density for _, points in outlines for _, density in points), default=1) or 1
    lines = []
    for index, points in outlines:
        path = " ".join(
            f"{_LEFT + (x - low) * scale:.1f},{_HEIGHT - _BOTTOM - density / top * (_HEIGHT - _BOTTOM - 8):.1f}"
            for x, density in points
        )
        lines.append(f"<polyline points='{path}' fill='none' {_stroke(index)}/>")
    axis = (
        f"<line x1='{_LEFT}' x2='{_WIDTH - _LEFT}' y1='{_HEIGHT - _BOTTOM}' y2='{_HEIGHT - _BOTTOM}' stroke='#9aa4b2'/>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 5}' font-size='11' fill='#5b6675'>{low:.5g}</text>"
        f"<text x='{_WIDTH - _LEFT}' y='{_HEIGHT - 5}' font-size='11' fill='#5b6675' text-anchor='end'>"
        f"{high:.5g}</text>"
    )
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{axis}{''.join(lines)}</svg>"


def _outline(feature: Feature, low: float, high: float) -> list[tuple[float, float]]:
    """Corners of a step line: (value, share of the images ÷ width), closed at the axis."""
    total = sum(count for _, _, count in feature.buckets) or 1.0
    if feature.low == feature.high:
        # All in one place: a needle as wide as a hundredth of the axis, cut to the height of ten equal buckets.
        half = (high - low) / 200
        density = 10 / (high - low)
        return [
            (feature.low - half, 0),
            (feature.low - half, density),
            (feature.low + half, density),
            (feature.low + half, 0),
        ]
    points: list[tuple[float, float]] = [(feature.buckets[0][0], 0.0)] if feature.buckets else []
    for start, stop, count in feature.buckets:
        density = count / total / (stop - start) if stop > start else 0.0
        points += [(start, density), (stop, density)]
    return [*points, (points[-1][0], 0.0)] if points else []


def _bars(drawn: list[tuple[int, Feature]]) -> str:
    """A row per word with one bar per split; the commonest words of the first split, the rest in a line."""
    words = list(dict.fromkeys(word for _, feature in drawn for word in sorted(feature.shares)))
    shown = words[:_MOST_WORDS]
    shares = [
        (index, {w: n / (sum(feature.shares.values()) or 1) for w, n in feature.shares.items()})
        for index, feature in drawn
    ]
    top = max((share for _, one in shares for share in one.values()), default=1) or 1
    thick, gap, label = 5, 7, 120
    row = thick * len(drawn) + gap
    marks = []
    for number, word in enumerate(shown):
        y = number * row
        name = word if len(word) <= 17 else word[:16] + "…"
        marks.append(
            f"<text x='{label - 6}' y='{y + row / 2 + 1:.1f}' font-size='11' text-anchor='end'>{_text(name)}</text>"
        )
        for place, (index, one) in enumerate(shares):
            share = one.get(word, 0)
            width = share / top * (_WIDTH - label - 50)
            marks.append(
                f"<rect x='{label}' y='{y + place * thick + 1}' width='{max(width, 0.5):.1f}' height='{thick - 1}' "
                f"fill='{_colour(index)}'><title>{_text(word)}: {share:.1%}</title></rect>"
            )
        most = max(one.get(word, 0) for _, one in shares)
        end = label + most / top * (_WIDTH - label - 50)
        marks.append(
            f"<text x='{end + 5:.1f}' y='{y + row / 2 + 1:.1f}' font-size='10' fill='#5b6675'>{most:.1%}</text>"
        )
    more = f"<p class=muted>and {len(words) - len(shown)} more</p>" if len(words) > len(shown) else ""
    return f"<svg viewBox='0 0 {_WIDTH} {max(len(shown), 1) * row}' role='img'>{''.join(marks)}</svg>{more}"


def _comparisons(compared: list[dict[str, Any]]) -> str:
    if not compared:
        return "<h2>Drift and skew</h2><p>There was nothing to compare with.</p>"
    kinds = {"drift": "the earlier data", "skew": "what is served"}
    rows = [
        [
            one["split"],
            kinds[one["kind"]],
            f"<code>{_text(one['feature'])}</code>",
            f"{one['distance']:.3f}",
            f"{one['limit']:.3f}",
            "<b>too far</b>" if one["distance"] > one["limit"] else "",
        ]
        for one in sorted(compared, key=lambda one: -one["distance"] / one["limit"])
    ]
    return "<h2>Drift and skew</h2>" + _table(
        ["split", "compared with", "feature", "distance", "limit", ""], rows
    )


def _copies(copies: dict[str, Any]) -> str:
    if not copies["num_copies"]:
        return "<h2>Copies</h2><p>No two images have the same bytes.</p>"
    text = (
        f"<h2>Copies</h2><p>{copies['num_copies']} images are exact copies of others; {copies['num_leaked']} val and "
        f"test images are also in another split; {copies['num_contradictory']} have more than one label.</p>"
    )
    rows = [
        [
            ", ".join(f"{split} {number}" for split, number in group["splits"].items()),
            str(group["num_labels"]),
            "<br>".join(f"<code>{_text(name)}</code>" for name in group["files"]),
        ]
        for group in copies["groups"][:_MOST_ROWS]
    ]
    return text + _table(["splits", "labels", "files"], rows) + _rest(len(copies["groups"]))


def _rejected(intake: dict[str, Any]) -> str:
    if not intake["num_corrupt"]:
        return "<h2>Unreadable images</h2><p>None.</p>"
    rows = [
        [f"<code>{_text(one['file'])}</code>", _text(one["reason"])] for one in intake["corrupt"][:_MOST_ROWS]
    ]
    return (
        f"<h2>Unreadable images</h2><p>{intake['num_corrupt']} are left out of every split.</p>"
        + _table(["file", "reason"], rows)
        + _rest(intake["num_corrupt"])
    )


def _rest(total: int) -> str:
    return f"<p class=muted>and {total - _MOST_ROWS} more, in report.json</p>" if total > _MOST_ROWS else ""


def _key(samples: list[Sample]) -> str:
    items = "".join(
        f"<span><svg viewBox='0 0 28 10'><line x1='0' x2='28' y1='5' y2='5' {_stroke(index)}/></svg> "
        f"{_text(sample.name)}</span>"
        for index, sample in enumerate(samples)
    )
    return f"<p class=key>{items}</p>"


def _table(heads: Iterable[str], rows: list[list[str]], *, numeric: bool = False) -> str:
    right = " class=n" if numeric else ""
    head = "".join(f"<th{right if number else ''}>{text}</th>" for number, text in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(f"<td{right if number else ''}>{cell}</td>" for number, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _stroke(index: int) -> str:
    dash = _DASHES[index % len(_DASHES)]
    return f"stroke='{_colour(index)}' stroke-width='2'" + (f" stroke-dasharray='{dash}'" if dash else "")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
