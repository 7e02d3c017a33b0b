"""TF Serving's version labels as the registry wants them, who is to be told, and who was.

`stable` stands for the champion, `canary` for the challenger. The registry decides; models.config and the running
servers follow. Who they are is remembered with the model, and so is what each was last told: a command that was
killed before it had told them, or that could not reach them, leaves a difference which every later `isthmus
registry` command sees and says (`behind`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isthmus.lineage.config import RegistryConfig
from isthmus.lineage.files import canonical_json
from isthmus.lineage.versions import Version, champion, get, store_client

_TARGETS_TAG = "isthmus.mirror.targets"
_TOLD_TAG = "isthmus.mirror.told"
_MAX_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a server should say about a model."""

    name: str
    labels: dict[str, int]
    """{label: served version number}: `stable` and, where the challenger is another version, `canary`."""
    base_path: str | None
    """The folder above the pushed versions, as the registry has it."""

    def __str__(self) -> str:
        return described(self.labels)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Who is to be told about a model."""

    servers: tuple[str, ...] = ()
    """HOST:PORT of the gRPC API of each server."""
    models_config: str | None = None
    """The ModelServerConfig file that servers are started with, or poll."""
    only_model: bool = False
    """The servers serve nothing else, so that no models_config is needed to know the rest."""
    base_path: str | None = None
    """The folder above the versions as the servers see it, where that is another than the registry's."""
    token_file: str | None = None
    """Its first line is the API token that the servers want."""
    ca_file: str | None = None
    """Certificates (PEM) that vouch for servers with TLS."""

    def __bool__(self) -> bool:
        return bool(self.servers or self.models_config)

    @property
    def names(self) -> tuple[str, ...]:
        """Each target as it is called in messages."""
        return (*self.servers, *([self.models_config] if self.models_config else []))


Mirror = Callable[[Wanted], dict[str, str | None]]
"""Tells every target what is wanted; returns {target: why it could not be told, or None}."""


def described(labels: Mapping[str, int]) -> str:
    """`stable = 3, canary = 4`."""
    return (
        ", ".join(f"{label} = {number}" for label, number in sorted(labels.items(), reverse=True))
        or "no label"
    )


def wanted(name: str) -> Wanted:
    """The labels that the registry asks for; of a version that was never pushed there is none.

    Raises LineageError for an unknown model.
    """
    stable, canary = champion(name), get(name, "challenger")
    labels = {
        label: version.served_version
        for label, version in (("stable", stable), ("canary", canary))
        if version is not None and version.served_version is not None
    }
    if labels.get("canary") == labels.get("stable"):
        labels.pop("canary", None)
    return Wanted(name=name, labels=labels, base_path=_base_path(stable or canary))


def _base_path(version: Version) -> str | None:
    place = version.tag("pushed_path")
    return place.rstrip("/").rpartition("/")[0] if place else None


def remembered(name: str) -> Targets:
    """Who was to be told the last time; nobody when that was never said."""
    value = _read(name, _TARGETS_TAG)
    return Targets(**(value | {"servers": tuple(value["servers"])})) if value else Targets()


def remember(name: str, targets: Targets) -> None:
    """Keep for later commands who is to be told; what dropped targets were told is forgotten."""
    store_client().set_registered_model_tag(name, _TARGETS_TAG, canonical_json(asdict(targets)))
    told = {target: labels for target, labels in last_told(name).items() if target in targets.names}
    store_client().set_registered_model_tag(name, _TOLD_TAG, canonical_json(told))


def last_told(name: str) -> dict[str, dict[str, int]]:
    """{target: the labels it was last told}; a target that was never told is missing."""
    return dict(_read(name, _TOLD_TAG) or {})


def behind(name: str) -> list[str]:
    """A line for each remembered target that was last told something else than the registry now says."""
    targets = remembered(name)
    if not targets:
        return []
    want, told = wanted(name), last_told(name)
    return [
        f"{target} {_says(told.get(target))}, the registry says {want}; run `isthmus registry sync {name}`"
        for target in targets.names
        if told.get(target) != want.labels
    ]


def _says(labels: Mapping[str, int] | None) -> str:
    return "was never told" if labels is None else f"was last told {described(labels)}"


def tell(name: str, mirror: Mirror) -> list[str]:
    """Tell every target what the registry wants; returns a line for each that could not be told.

    Looks at the registry again afterwards: where another command has moved an alias meanwhile, all are told anew.
    """
    problems: dict[str, str | None] = {}
    want = wanted(name)
    for _ in range(_MAX_ROUNDS):
        try:
            problems = mirror(want)
        except Exception as error:  # noqa: BLE001 - the move is made: say it, do not raise it
            problems = dict.fromkeys(remembered(name).names or ("the servers",), str(error))
        told = last_told(name) | {target: want.labels for target, text in problems.items() if text is None}
        store_client().set_registered_model_tag(name, _TOLD_TAG, canonical_json(told))
        now = wanted(name)
        if now == want:
            break
        want = now
    return [_notice(name, target, text, want) for target, text in problems.items() if text is not None]


def _notice(name: str, target: str, problem: str, want: Wanted) -> str:
    state = _says(last_told(name).get(target))
    return (
        f"{target} was not told that {name} has {want} ({problem}); it {state}. "
        f"`isthmus registry sync {name}` tells it"
    )


def chosen(name: str, asked: Targets, recipe: Targets) -> Targets:
    """Whom to tell: who the command line names, else who is remembered, else who the recipe names."""
    return asked or remembered(name) or recipe


def targets_of(config: RegistryConfig) -> Targets:
    """Whom a recipe's `registry` section names."""
    return Targets(
        servers=tuple(config.servers),
        models_config=_text(config.models_config),
        only_model=config.only_model,
        base_path=config.base_path,
        token_file=_text(config.server_token_file),
        ca_file=_text(config.server_ca_file),
    )


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def _read(name: str, tag: str) -> dict[str, Any] | None:
    text = store_client().get_registered_model(name).tags.get(tag)
    return dict(json.loads(text)) if text else None
