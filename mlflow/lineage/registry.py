"""The registry, for everybody: versions, champion, promotion, history.

tracking.connect(home)
version = registry.register_version(name="digits", manifest=…, bundle=…, pushed_path=…, served_version=1)
registry.promote("digits", by="operator", why="better on 3 and 8")
registry.rollback("digits", why="slower than it should be")
"""

from __future__ import annotations

from isthmus.lineage import history as _history
from isthmus.lineage.gates import Verdict, check
from isthmus.lineage.history import Entry
from isthmus.lineage.labels import Mirror, Targets, Wanted, behind, remember, tell, wanted
from isthmus.lineage.promotion import Move, champion_at, promote, rollback
from isthmus.lineage.registration import register_version
from isthmus.lineage.versions import (
    Version,
    challenger,
    champion,
    diff,
    find,
    get,
    list_models,
    list_versions,
    settle_aliases,
    store_client,
)


def history(name: str) -> list[Entry]:
    """Every move of the aliases of a model, oldest first; raises LineageError for an unknown model."""
    entries = _history.read(store_client(), name)
    if not entries:
        list_versions(name)
    return entries


__all__ = [
    "Entry",
    "Mirror",
    "Move",
    "Targets",
    "Verdict",
    "Version",
    "Wanted",
    "behind",
    "challenger",
    "champion",
    "champion_at",
    "check",
    "diff",
    "find",
    "get",
    "history",
    "list_models",
    "list_versions",
    "promote",
    "register_version",
    "remember",
    "rollback",
    "settle_aliases",
    "store_client",
    "tell",
    "wanted",
]
