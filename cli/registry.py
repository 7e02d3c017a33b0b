"""`isthmus registry ACTION`: prints versions, moves and the history."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isthmus.cli import label_sync, webhooks
from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.lineage.config import RegistryConfig
    from isthmus.lineage.registry import Version

NOT_TOLD = 5
"""Exit code: the registry has moved, and a server or models.config was not told."""

#: Where a difference between registry and servers must not go unsaid; `sync`, `promote` and `rollback` end it.
_SAY_WHO_IS_BEHIND = {"list", "show", "history", "diff"}


def run(arguments: argparse.Namespace) -> int:
    """Carries out one action against the store that the arguments name."""
    from isthmus.lineage import tracking

    tracking.connect(arguments.home, arguments.tracking_uri)
    if arguments.action in _SAY_WHO_IS_BEHIND and arguments.name is not None:
        _say_who_is_behind(arguments.name)
    action = {
        "list": _list,
        "show": _show,
        "diff": _diff,
        "promote": _promote,
        "rollback": _rollback,
        "sync": _sync,
        "history": _history,
        "gc": _gc,
        "webhook": webhooks.webhook,
        "listen": webhooks.listen,
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

    present = registry.champion(arguments.name)
    candidate = registry.get(arguments.name, _version(arguments.version))
    if present is not None and present.version == candidate.version and registry.behind(arguments.name):
        # An earlier command decided this and was killed before it had told the servers.
        print(
            f"version {candidate.version} is the champion of {arguments.name} already; the servers follow now"
        )
        return _sync(arguments)
    move = registry.promote(
        arguments.name,
        candidate.version,
        by=getpass.getuser(),
        why=arguments.why,
        config=_config(arguments, candidate),
        approve_by=arguments.approve_by,
        verification_key=arguments.verification_key,
        mirror=label_sync.mirror(arguments, _config(arguments, candidate)),
    )
    return _print_move(arguments, move)


def _rollback(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    present = registry.get(arguments.name, "champion")
    move = registry.rollback(
        arguments.name,
        to=arguments.to,
        by=getpass.getuser(),
        why=arguments.why,
        verification_key=arguments.verification_key,
        mirror=label_sync.mirror(arguments, _config(arguments, present)),
    )
    return _print_move(arguments, move)


def _sync(arguments: argparse.Namespace) -> int:
    """Tells the servers and models.config what the registry says, whatever they say now."""
    from isthmus.lineage import registry

    present = registry.champion(arguments.name) or registry.get(arguments.name, "challenger")
    mirror = label_sync.mirror(arguments, _config(arguments, present))
    if mirror is None:
        raise UsageError(f"nobody to tell about {arguments.name}: {label_sync.WHOM}")
    notices = registry.tell(arguments.name, mirror)
    want = registry.wanted(arguments.name)
    if arguments.json:
        print(json.dumps({"labels": want.labels, "notices": notices}, indent=2))
    else:
        print("\n".join(notices or [f"{arguments.name} has {want} everywhere"]))
    return NOT_TOLD if notices else 0


def _config(arguments: argparse.Namespace, version: Version) -> RegistryConfig:
    """The `registry` section of --config, else of the recipe that the version was made with."""
    from isthmus.lineage import gates

    if arguments.config is None:
        return gates.recipe_config(version)
    from isthmus.cli.recipe import load

    return load(arguments.config).registry


def _say_who_is_behind(name: str) -> None:
    from isthmus.lineage import registry

    if name in registry.list_models():
        for line in registry.behind(name):
            print(f"attention: {line}", file=sys.stderr)


def _history(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import registry

    entries = [entry.to_dict() for entry in registry.history(arguments.name)]
    if arguments.json:
        print(json.dumps(entries, indent=2))
    else:
        print(_columns([("when", "alias", "from", "to", "by", "why"), *map(_move_row, entries)]))
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    from isthmus.lineage import cleanup

    removals = cleanup.plan(arguments.name, home=arguments.home)
    if arguments.json:
        print(json.dumps([removal.to_dict() for removal in removals], indent=2))
    elif not removals:
        print(f"{arguments.name}: every version is needed by an alias or a recent champion")
    else:
        for removal in removals:
            size = f"{removal.num_bytes / 1e6:.1f} MB"
            print("  ".join([f"version {removal.version.version}", size, *map(str, removal.folders)]))
    if arguments.yes:
        cleanup.carry_out(removals, home=arguments.home)
    elif removals and not arguments.json:
        print("nothing was removed; --yes removes these")
    return 0


def _move_row(entry: dict[str, Any]) -> tuple[str, ...]:
    why = entry["why"] if entry["effective"] else f"changed nothing, another came first ({entry['why']})"
    moved = (_text(entry["from_version"]), _text(entry["to_version"]))
    return (entry["when"], entry["alias"], *moved, entry["by"], _text(why))


def _print_move(arguments: argparse.Namespace, move: Any) -> int:
    print(json.dumps(move.to_dict(), indent=2) if arguments.json else move)
    return NOT_TOLD if move.notices else 0


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
