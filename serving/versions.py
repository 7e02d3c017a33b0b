"""Which versions should be served, and what to do next about it: pure functions of what lies on disk and what
runs.

The policies are FileSystemStoragePathSource's, the transitions AvailabilityPreservingPolicy's: the new
version is loaded before the old one is unloaded.
"""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = [
    "Action",
    "Labels",
    "ModelSettings",
    "Snapshot",
    "State",
    "VersionPolicy",
    "aspired_versions",
    "assigned_labels",
    "next_action",
    "parse_version",
]

Labels = Mapping[str, Mapping[str, int]]
"""Model name -> label -> version."""

_MAX_INT64 = 2**63 - 1


class State(enum.IntEnum):
    """tensorflow.serving.ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, kw_only=True)
class VersionPolicy:
    """Which of the versions on disk to serve."""

    kind: Literal["latest", "all", "specific"] = "latest"
    """latest: the num_versions with the highest numbers; all; or specific: exactly those in versions."""

    num_versions: int = 1
    """How many, for latest; 0 means 1."""

    versions: frozenset[int] = frozenset()
    """Which, for specific."""


_LATEST = VersionPolicy()


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """One model that the server was told to serve."""

    name: str
    """The name that requests use."""

    base_path: Path
    """Folder with numbered version folders."""

    policy: VersionPolicy = _LATEST
    """Which of them to serve."""

    labels: Mapping[str, int] = field(default_factory=dict)
    """Version by label."""


@dataclass(frozen=True)
class Snapshot:
    """One version of one model, as the policy sees it."""

    version: int
    state: State
    is_aspired: bool


@dataclass(frozen=True)
class Action:
    """What to do with one version."""

    kind: Literal["load", "unload"]
    version: int


def parse_version(folder_name: str) -> int | None:
    """The version number that a folder's name spells (leading zeros are allowed), or None."""
    if not folder_name.isascii() or not folder_name.isdigit():
        return None
    version = int(folder_name)
    return version if version <= _MAX_INT64 else None


def aspired_versions(folders_by_version: Mapping[int, str], policy: VersionPolicy) -> dict[int, str]:
    """The versions that the policy wants served, with their folders' names."""
    if policy.kind == "all":
        chosen = sorted(folders_by_version)
    elif policy.kind == "specific":
        chosen = sorted(policy.versions & folders_by_version.keys())
    else:
        chosen = sorted(folders_by_version)[-max(policy.num_versions, 1) :]
    return {version: folders_by_version[version] for version in chosen}


def assigned_labels(
    models: Iterable[ModelSettings],
    available: Mapping[str, Collection[int]],
    previous: Labels,
    *,
    allow_unavailable: bool,
) -> Labels:
    """The labels that a configuration gives, checked (ServerCore::UpdateModelVersionLabelMap).

    Args:
        models: the new configuration.
        available: the AVAILABLE versions by model name.
        previous: the labels until now.
        allow_unavailable: whether a label that is new, or stays where it was, may name a version that is not
            available.

    Raises:
        RequestError: FAILED_PRECONDITION.
    """
    assigned: dict[str, dict[str, int]] = {}
    for model in models:
        for label, version in model.labels.items():
            moves = previous.get(model.name, {}).get(label, version) != version
            if version not in available.get(model.name, ()) and (moves or not allow_unavailable):
                raise RequestError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                )
            assigned.setdefault(model.name, {})[label] = version
    return assigned


def next_action(snapshots: Sequence[Snapshot]) -> Action | None:
    """The next step for one model, or None.

    A version that is no longer wanted is unloaded once a wanted one is available, or when none is wanted at
    all; of the wanted ones the highest number is loaded first.
    """
    aspired = [snapshot for snapshot in snapshots if snapshot.is_aspired]
    if not aspired or any(snapshot.state is State.AVAILABLE for snapshot in aspired):
        unwanted = [s.version for s in snapshots if not s.is_aspired and s.state is State.AVAILABLE]
        if unwanted:
            return Action("unload", min(unwanted))
    new = [snapshot.version for snapshot in aspired if snapshot.state is State.START]
    return Action("load", max(new)) if new else None
