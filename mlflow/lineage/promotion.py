"""Moving the champion: every gate and every hash again, then one entry in the history, then the alias.

The entry decides; a command killed after it is finished by the next one (`versions.settle_aliases`).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from isthmus.lineage import history, labels
from isthmus.lineage.config import RegistryConfig
from isthmus.lineage.errors import LineageError, PromotionConflict, PromotionRefused
from isthmus.lineage.gates import (
    Verdict,
    check,
    check_pushed,
    check_signature,
    failures,
    recipe_config,
    signing_key,
)
from isthmus.lineage.labels import Mirror
from isthmus.lineage.versions import Version, champion, get, settle_aliases, store_client, user_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A champion move that happened."""

    entry: history.Entry
    version: Version
    """The champion now."""
    previous: int | None
    """The version number that was champion before."""
    verdicts: list[Verdict]
    notices: list[str] = field(default_factory=list)
    """A line for each server or file that was not told, with the command that mends it."""

    def __str__(self) -> str:
        """What happened, in lines for a terminal."""
        number, name = self.version.version, self.version.name
        origin = f"it was version {self.previous}" if self.previous is not None else "there was none"
        lines = [f"version {number} is the champion of {name} now ({origin})"]
        lines += [f"  {verdict.gate}: {verdict.text}" for verdict in self.verdicts]
        return "\n".join([*lines, *self.notices])

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "entry": self.entry.to_dict(),
            "version": self.version.to_dict(),
            "previous": self.previous,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "notices": self.notices,
        }


def promote(
    name: str,
    version: int | str | None = None,
    *,
    by: str | None = None,
    why: str = "",
    config: RegistryConfig | None = None,
    approve_by: str | None = None,
    verification_key: Path | None = None,
    mirror: Mirror | None = None,
) -> Move:
    """Make a version (default: the challenger) the champion.

    `config` is by default the `registry` section of the recipe that the version was made with, `verification_key`
    what the environment or that recipe names. `mirror` tells the servers, when the champion has moved.
    Raises PromotionRefused when a gate is against it, PromotionConflict when somebody else moved the champion
    meanwhile, LineageError for an unknown model or version. Nothing has changed then.
    """
    client = store_client()
    _settle(name)
    entries = history.read(client, name)
    candidate = get(name, "challenger" if version is None else version)
    current = champion(name)
    if current is not None and current.version == candidate.version:
        raise LineageError(f"version {candidate.version} of {name} is the champion already")
    verdicts = check(
        candidate,
        config=config or recipe_config(candidate),
        current=current,
        approve_by=approve_by,
        verification_key=verification_key or signing_key(candidate),
    )
    _refuse_failed(name, candidate, verdicts)
    log.debug("step: checked")
    return _move(
        name,
        candidate,
        entries,
        "promote",
        by=by,
        why=why,
        approve_by=approve_by,
        verdicts=verdicts,
        mirror=mirror,
    )


def rollback(
    name: str,
    *,
    to: int | None = None,
    by: str | None = None,
    why: str = "",
    verification_key: Path | None = None,
    mirror: Mirror | None = None,
) -> Move:
    """Make the previous champion (or the earlier champion `to`) the champion again.

    Only what must hold for serving is checked again: that the pushed folder is there, byte for byte, and signed
    where a key is configured. Raises as `promote` does.
    """
    client = store_client()
    _settle(name)
    entries = history.read(client, name)
    stack = history.champion_stack(entries)
    target = to if to is not None else (stack[-2] if len(stack) > 1 else None)
    if target is None or target not in stack[:-1]:
        earlier = ", ".join(str(number) for number in stack[:-1]) or "none"
        given = "" if to is None else f" to version {to}"
        raise LineageError(f"{name} cannot be rolled back{given}; earlier champions: {earlier}")
    candidate = get(name, target)
    key = verification_key or signing_key(candidate)
    verdicts = [check_pushed(candidate), check_signature(candidate, key)]
    _refuse_failed(name, candidate, verdicts)
    return _move(
        name,
        candidate,
        entries,
        "rollback",
        by=by,
        why=why,
        approve_by=None,
        verdicts=verdicts,
        mirror=mirror,
    )


def _settle(name: str) -> None:
    get(name, "challenger")
    for line in settle_aliases(store_client(), name):
        log.warning("%s", line)


def _refuse_failed(name: str, candidate: Version, verdicts: list[Verdict]) -> None:
    if reasons := failures(verdicts):
        text = f"version {candidate.version} of {name} cannot become champion. {'. '.join(reasons)}"
        raise PromotionRefused(text, reasons)


def _move(
    name: str,
    candidate: Version,
    entries: list[history.Entry],
    action: history.Action,
    *,
    by: str | None,
    why: str,
    approve_by: str | None,
    verdicts: list[Verdict],
    mirror: Mirror | None,
) -> Move:
    client = store_client()
    entry = history.append(
        client,
        name,
        action=action,
        to_version=candidate.version,
        log=entries,
        by=user_name(by),
        why=why or ("promoted" if action == "promote" else "rolled back"),
        approved_by=approve_by,
        verdicts={verdict.gate: verdict.text for verdict in verdicts},
    )
    log.debug("step: entry written")
    settle_aliases(client, name)
    log.debug("step: aliases moved")
    if not entry.effective:
        moves = history.champion_moves(history.read(client, name))
        raise PromotionConflict(
            f"{moves[-1].by} made version {moves[-1].to_version} the champion of {name} at the same time; "
            f"version {candidate.version} is not. Look at `isthmus registry history {name}` and repeat"
        )
    notices = labels.tell(name, mirror) if mirror is not None else labels.behind(name)
    log.debug("step: servers told")
    return Move(
        entry=entry,
        version=get(name, candidate.version),
        previous=entry.from_version,
        verdicts=verdicts,
        notices=notices,
    )


def champion_at(name: str, moment: datetime) -> int | None:
    """The version that was champion of `name` at that moment (UTC without a zone); None before the first."""
    entry = history.champion_at(history.read(store_client(), name), moment)
    return entry.to_version if entry else None
