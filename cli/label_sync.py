"""Whom `isthmus registry promote|rollback|sync` tells, from arguments, memory and recipe to one callable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.lineage.config import RegistryConfig
    from isthmus.lineage.labels import Mirror, Targets, Wanted

WHOM = "give --server HOST:PORT or --models-config FILE, or set registry.servers in the recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that moves labels."""
    group = parser.add_argument_group(
        "servers whose labels `stable` and `canary` follow (remembered; default: the last time's, then the recipe's)"
    )
    group.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="gRPC API of a server; may be repeated",
    )
    group.add_argument(
        "--models-config", type=Path, metavar="FILE", help="the ModelServerConfig file they are started with"
    )
    group.add_argument(
        "--only-model", action="store_true", help="without FILE: this model is all that the servers serve"
    )
    group.add_argument(
        "--base-path", metavar="DIR", help="the folder above the versions, as the servers see it"
    )


def mirror(arguments: argparse.Namespace, config: RegistryConfig) -> Mirror | None:
    """What tells the servers; None where nobody is to be told. The choice is remembered with the model.

    Raises:
        UsageError: the other models of the servers would be lost, or --only-model names no server.
    """
    from isthmus.lineage import labels

    targets = labels.chosen(arguments.name, _asked(arguments), labels.targets_of(config))
    if not targets:
        return None
    if targets.servers and targets.models_config is None and not targets.only_model:
        raise UsageError(
            "a server forgets every model that it is not told again: give --models-config, the file with its other "
            f"models, or --only-model if {arguments.name} is all that it serves"
        )
    if targets != labels.remembered(arguments.name):
        labels.remember(arguments.name, targets)
    return _teller(targets)


def _asked(arguments: argparse.Namespace) -> Targets:
    from isthmus.lineage.labels import Targets

    asked = Targets(
        servers=tuple(arguments.server),
        models_config=str(arguments.models_config.absolute()) if arguments.models_config else None,
        only_model=arguments.only_model,
        base_path=arguments.base_path,
    )
    if not asked and (asked.only_model or asked.base_path):
        raise UsageError("--only-model and --base-path say more about --server HOST:PORT: name one")
    return asked


def _teller(targets: Targets) -> Mirror:
    from isthmus.serving.label_sync import LabelSync, WantedLabels

    token = Path(targets.token_file).read_text().splitlines()[0].strip() if targets.token_file else None
    sync = LabelSync(
        servers=targets.servers,
        models_config=Path(targets.models_config) if targets.models_config else None,
        only_model=targets.only_model,
        token=token,
        ca_file=Path(targets.ca_file) if targets.ca_file else None,
    )

    def tell(wanted: Wanted) -> dict[str, str | None]:
        base_path = targets.base_path or wanted.base_path
        return sync.tell(WantedLabels(name=wanted.name, labels=wanted.labels, base_path=base_path))

    return tell
