"""Spans and versions: which folder of `span-{SPAN}/v{VERSION}` a run reads. TFX's patterns, on any file system of Beam.

    resolve("s3://bucket/day-{SPAN:3}/v{VERSION}")      # Resolved(path="s3://bucket/day-007/v2", span=7, version=2)

`{SPAN}` or `{SPAN:width}` is a number; `{YYYY}`, `{MM}` and `{DD}` are a date, and its span the days since 1970;
`{VERSION}` or `{VERSION:width}` counts within a span. The largest span is taken, then its largest version.
"""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass

from isthmus.lineage.places import is_remote
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.listing import names_below

_SPEC = re.compile(r"\{(SPAN|VERSION)(?::(\d+))?\}|\{(YYYY|MM|DD)\}")
_DATE_WIDTHS = {"YYYY": 4, "MM": 2, "DD": 2}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Where a pattern led."""

    path: str
    """The pattern with its span and version filled in."""

    span: int
    """0 where the pattern has none, as TFX counts."""

    version: int
    """0 where the pattern has none."""


def resolve(pattern: str, *, span: int | None = None, version: int | None = None) -> Resolved:
    """Find the span and version to read.

    Args:
        pattern: A path, perhaps with specs.
        span: Take this one. None: the latest.
        version: Take this one of the span. None: the latest.

    Raises:
        PipelineError: A spec is used twice or half, what was asked for is not there, or nothing is.
    """
    names = [word or date for word, _, date in _SPEC.findall(pattern)]
    _check(pattern, names, span=span, version=version)
    if not names:
        return Resolved(path=pattern, span=0, version=0)
    found = _matches(pattern)
    if not found:
        raise PipelineError(f"nothing matches {pattern}; {_beside(pattern)}")
    spans = sorted({each.span for each in found})
    if span is not None and span not in spans:
        raise PipelineError(f"{pattern} has no span {span}; it has {_listed(spans)}")
    chosen = spans[-1] if span is None else span
    of_span = {each.version: each for each in found if each.span == chosen}
    if version is not None and version not in of_span:
        raise PipelineError(
            f"span {chosen} of {pattern} has no version {version}; it has {_listed(sorted(of_span))}"
        )
    return of_span[max(of_span) if version is None else version]


def has_specs(pattern: str) -> bool:
    """Whether a pattern leaves something to find."""
    return _SPEC.search(pattern) is not None


def _check(pattern: str, names: list[str], *, span: int | None, version: int | None) -> None:
    dates = [name for name in names if name in _DATE_WIDTHS]
    if len(set(names)) != len(names):
        raise PipelineError(f"{pattern} names {' '.join(names)}: each may be used once")
    if dates and ("SPAN" in names or len(dates) != len(_DATE_WIDTHS)):
        raise PipelineError(f"{pattern}: use {{SPAN}}, or all of {{YYYY}}, {{MM}} and {{DD}}")
    if "VERSION" in names and len(names) == 1:
        raise PipelineError(f"{pattern}: {{VERSION}} counts within a span; add {{SPAN}}")
    if span is not None and not (dates or "SPAN" in names):
        raise PipelineError(f"span {span} was asked for, but {pattern} has no {{SPAN}}")
    if version is not None and "VERSION" not in names:
        raise PipelineError(f"version {version} was asked for, but {pattern} has no {{VERSION}}")


def _matches(pattern: str) -> list[Resolved]:
    """Every place that fits, grown component by component."""
    scheme, slashes, rest = pattern.partition("://") if is_remote(pattern) else ("", "", pattern)
    grown: list[tuple[str, dict[str, int]]] = [(scheme + slashes, {})]
    for component in re.split(r"(?<=/)", rest):
        bare = component.rstrip("/")
        if not _SPEC.search(bare):
            grown = [(path + component, values) for path, values in grown]
            continue
        expression = re.compile(_expression(bare))
        grown = [
            (
                path + name + component[len(bare) :],
                values | {key: int(text) for key, text in fit.groupdict().items()},
            )
            for path, values in grown
            for name in names_below(path or ".")
            if (fit := expression.fullmatch(name))
        ]
    found = [_resolved(path, values) for path, values in grown]
    return [each for each in found if each is not None]


def _expression(component: str) -> str:
    parts, end = [], 0
    for spec in _SPEC.finditer(component):
        name, width = spec[1] or spec[3], spec[2] or _DATE_WIDTHS.get(spec[3] or "")
        parts += [
            re.escape(component[end : spec.start()]),
            rf"(?P<{name}>\d{{{width}}})" if width else rf"(?P<{name}>\d+)",
        ]
        end = spec.end()
    return "".join(parts) + re.escape(component[end:])


def _resolved(path: str, values: dict[str, int]) -> Resolved | None:
    if "SPAN" in values:
        span = values["SPAN"]
    else:
        try:
            day = datetime.date(values["YYYY"], values["MM"], values["DD"])
        except ValueError:
            return None
        span = (day - datetime.date(1970, 1, 1)).days
    return Resolved(path=path, span=span, version=values.get("VERSION", 0))


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[-5:]))
    return shown if len(numbers) <= 5 else f"{len(numbers)}, the last {shown}"


def _beside(pattern: str) -> str:
    fixed = pattern[: _SPEC.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    there = sorted(names_below(fixed or "."))
    return f"{fixed or 'the working directory'} holds {', '.join(there[:5]) or 'nothing'}"


def absolute(path: str) -> str:
    """A local path made absolute; a remote one as it is."""
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))
