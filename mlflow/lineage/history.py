"""The log of every move of an alias: append-only, in the MLflow store itself, safe for two movers at once.

MLflow keeps where an alias points, not where it pointed (mlflow#2169). The log of model `digits` is the
registered model `digits.history`: one version of it per entry, whose number the store hands out atomically,
on SQLite and on a server alike. An entry names the last champion move its author had seen (`after`). Read in
order, a champion move is effective when that is still the last one; of two at once the lower number wins and
the other stays in the log, without effect. The alias is only a copy of what the log says.

Each entry holds the SHA-256 of the last entry its author had seen, so a changed or removed one shows
(`faults`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import canonical_json, sha256_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["register", "first", "promote", "rollback"]

SUFFIX = ".history"
_ENTRY_TAG = "isthmus.entry"
_KIND_TAG = "isthmus.kind"
_PAGE = 10_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One move of an alias, as it was decided."""

    sequence: int
    """Its number in the log, from 1, given by the store."""

    action: Action
    """`register` moves `challenger`; `first` (no champion yet), `promote` and `rollback` move `champion`."""

    from_version: int | None
    """The registered version that had the alias before."""

    to_version: int
    """The registered version that has it now."""

    when: str
    """UTC, ISO 8601 with milliseconds."""

    by: str
    """Who ran the command."""

    approved_by: str | None
    """Who approved, where the recipe asks for approval."""

    why: str
    """The reason given."""

    verdicts: dict[str, str]
    """Every gate that was checked and what it said."""

    after: int
    """`sequence` of the last effective champion move its author had seen; 0 = none."""

    seen: int
    """`sequence` of the last entry of any kind its author had seen; 0 = none."""

    seen_sha256: str
    """`sha256` of that entry; empty for none."""

    sha256: str = ""
    """Over all the above but `sequence`."""

    effective: bool = True
    """False: another champion move came in between; this one changed nothing."""

    @property
    def alias(self) -> str:
        """The alias that moved."""
        return "challenger" if self.action == "register" else "champion"

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return asdict(self) | {"alias": self.alias}


def replay(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in order, each marked effective or not. Pure."""
    last_champion_move = 0
    played = []
    for entry in sorted(entries, key=lambda entry: entry.sequence):
        effective = entry.action == "register" or entry.after == last_champion_move
        if effective and entry.action != "register":
            last_champion_move = entry.sequence
        played.append(replace(entry, effective=effective))
    return played


def champion_moves(entries: Sequence[Entry]) -> list[Entry]:
    """The effective champion moves of a replayed log, oldest first."""
    return [entry for entry in entries if entry.effective and entry.action != "register"]


def champion_stack(entries: Sequence[Entry]) -> list[int]:
    """Versions to go back through: a promotion puts one on top, a rollback takes off all above its target."""
    stack: list[int] = []
    for move in champion_moves(entries):
        if move.action == "rollback" and move.to_version in stack:
            del stack[stack.index(move.to_version) + 1 :]
        else:
            stack = [version for version in stack if version != move.to_version] + [move.to_version]
    return stack


def champion_at(entries: Sequence[Entry], moment: datetime) -> Entry | None:
    """The move that made the champion of that moment; None before the first. No time zone means UTC."""
    limit = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    found = None
    for move in champion_moves(entries):
        if datetime.fromisoformat(move.when) > limit:
            break
        found = move
    return found


def faults(entries: Sequence[Entry]) -> list[str]:
    """What is wrong with a log: removed numbers, entries that were changed after others had seen them."""
    by_number = {entry.sequence: entry for entry in entries}
    missing = sorted(set(range(1, max(by_number, default=0) + 1)) - set(by_number))
    found = [f"history entry {number} was removed" for number in missing]
    for entry in entries:
        if entry.sha256 != _digest(entry):
            found.append(f"history entry {entry.sequence} was changed: its own digest does not match")
        seen = by_number.get(entry.seen)
        if seen is not None and seen.sha256 != entry.seen_sha256:
            found.append(
                f"history entry {seen.sequence} was changed after entry {entry.sequence} had seen it"
            )
    return found


def read(client: MlflowClient, name: str) -> list[Entry]:
    """The replayed log of a model, oldest first; empty when it has none."""
    entries = []
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}{SUFFIX}'", max_results=_PAGE, page_token=token)
        entries += [_decode(name, int(row.version), row.tags.get(_ENTRY_TAG)) for row in page]
        token = page.token
        if not token:
            return replay(entries)


def append(
    client: MlflowClient,
    name: str,
    *,
    action: Action,
    to_version: int,
    log: Sequence[Entry],
    by: str,
    why: str,
    approved_by: str | None = None,
    verdicts: dict[str, str] | None = None,
) -> Entry:
    """Add an entry, decided on the state `log` (what `read` gave), and return it as it then stands in the
    log.

    Look at `effective`: False means that another champion move came first and this one counts for nothing.
    """
    moves = champion_moves(log)
    registered = [entry for entry in log if entry.action == "register"]
    before = registered if action == "register" else moves
    entry = Entry(
        sequence=0,
        action=action,
        from_version=before[-1].to_version if before else None,
        to_version=to_version,
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=by,
        approved_by=approved_by,
        why=why,
        verdicts=dict(verdicts or {}),
        after=moves[-1].sequence if moves else 0,
        seen=log[-1].sequence if log else 0,
        seen_sha256=log[-1].sha256 if log else "",
    )
    entry = replace(entry, sha256=_digest(entry))
    _ensure_log(client, name)
    row = client.create_model_version(
        name + SUFFIX,
        source=f"models:/{name}/{to_version}",
        tags={_ENTRY_TAG: canonical_json(_content(entry) | {"sha256": entry.sha256}), _KIND_TAG: "history"},
        description=_sentence(name, entry),
        await_creation_for=0,
    )
    number = int(row.version)
    return next(played for played in read(client, name) if played.sequence == number)


def is_log(model_name: str) -> bool:
    """Whether a registered model is a log and no model."""
    return model_name.endswith(SUFFIX)


def _ensure_log(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name + SUFFIX,
            tags={_KIND_TAG: "history"},
            description=f"Every move of the aliases of {name}. Written by isthmus; append-only, do not edit.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _content(entry: Entry) -> dict[str, Any]:
    value = asdict(entry)
    for derived in ("sequence", "sha256", "effective"):
        del value[derived]
    return value


def _digest(entry: Entry) -> str:
    return sha256_text(canonical_json(_content(entry)))


def _decode(name: str, sequence: int, text: str | None) -> Entry:
    try:
        return Entry(sequence=sequence, **json.loads(text or ""))
    except (ValueError, TypeError) as error:
        raise LineageError(
            f"entry {sequence} of the history of {name} cannot be read ({error}); it was edited by hand: "
            f"restore the tag {_ENTRY_TAG} of version {sequence} of {name}{SUFFIX} from a backup of the store"
        ) from error


def _sentence(name: str, entry: Entry) -> str:
    origin = "nothing" if entry.from_version is None else f"version {entry.from_version}"
    approval = f", approved by {entry.approved_by}" if entry.approved_by else ""
    move = f"{entry.alias} of {name}: {origin} to version {entry.to_version}"
    return f"{move}, by {entry.by}{approval}: {entry.why}"
