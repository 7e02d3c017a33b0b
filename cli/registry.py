"""`isthmus registry ACTION`: prints versions, moves and the history."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.lineage.registry import Version


def run(arguments: argparse.Namespace) -> int:
    """Carries out one action against the store that the arguments name."""
    from isthmus.lineage import tracking

    tracking.connect(arguments.home, arguments.tracking_uri)
    action = {
        "list": _list,
        "show": _show,
        "diff": _diff,
        "promote": _promote,
        "rollback": _rollback,
        "history": _history,
    }[arguments.action]
    return action(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    versions = registry.list_versions(arguments.name)
    if arguments.json:
        print(json.dumps([version.to_dict() for version in versions], indent=2))
        return 0
    if not versions:
        print("no version is registered yet; `isthmus pipeline` registers what it pushes")
        return 0
    print(
        _columns(
            [("name", "version", "aliases", "served as", "accuracy", "registered"), *map(_row, versions)]
        )
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    version = registry.get(arguments.name, _version(arguments.version)).to_dict()
    if arguments.json:
        print(json.dumps(version, indent=2))
    else:
        print(_columns([(key, _text(value)) for key, value in version.items()]))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    differences = registry.diff(arguments.name, _version(arguments.version), _version(arguments.other))
    if arguments.json:
        print(json.dumps(differences, indent=2))
    else:
        rows = [(key, _text(one), _text(other)) for key, (one, other) in sorted(differences.items())]
        print(_columns([("", arguments.version, arguments.other), *rows]) if rows else "no difference")
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    move = registry.promote(
        arguments.name,
        _version(arguments.version),
        by=getpass.getuser(),
        why=arguments.why,
        approve_by=arguments.approve_by,
    )
    return _print_move(arguments, move)


def _rollback(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    return _print_move(arguments, registry.rollback(arguments.name, by=getpass.getuser(), why=arguments.why))


def _history(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    entries = [entry.to_dict() for entry in registry.history(arguments.name)]
    if arguments.json:
        print(json.dumps(entries, indent=2))
    else:
        rows = [tuple(_text(entry[key]) for key in _HISTORY_COLUMNS) for entry in entries]
        print(_columns([_HISTORY_COLUMNS, *rows]))
    return 0


_HISTORY_COLUMNS = ("when", "alias", "from_version", "to_version", "by", "why")


def _print_move(arguments: argparse.Namespace, move: Any) -> int:
    print(json.dumps(move.to_dict(), indent=2) if arguments.json else move)
    return 0


def _version(text: str) -> int | str:
    """A number, or an alias with or without its @."""
    return int(text) if text.isdecimal() else text.removeprefix("@")


def _row(version: Version) -> tuple[str, ...]:
    return (
        version.name,
        str(version.version),
        ", ".join(version.aliases),
        _text(version.served_version),
        _text(version.metrics.get("accuracy")),
        version.created,
    )


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return value if isinstance(value, str) else json.dumps(value)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligns rows of the same length; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
