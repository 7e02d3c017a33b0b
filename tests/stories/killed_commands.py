"""Kills `isthmus registry promote` and `rollback` with SIGKILL at each of their steps, one after the other.

    python killed_commands.py HOME NAME HOST:PORT MODELS_CONFIG

A step is a line that the code logs when it has done something that lasts. After each killed command it runs the next
one, `isthmus registry sync`, and prints one JSON line: what the history, the alias, models.config and the server say.
Every command runs in a process of its own; they are forked, so that MLflow is imported once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = (
    "checked",
    "entry written",
    "aliases moved",
    "models.config prepared",
    "versions asked for",
    "versions available",
    "labels moved",
    "models.config written",
    "servers told",
)


class Killer(logging.Handler):
    """Kills its own process at a step, as `kill -9` would."""

    def __init__(self, step: str) -> None:
        super().__init__(logging.DEBUG)
        self._line = f"step: {step}"

    def emit(self, record: logging.LogRecord) -> None:
        """Called with every line that is logged."""
        if record.getMessage() == self._line:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(call: Callable[[], int]) -> int:
    """Wait status of a forked process that makes a call: the exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = call()
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(*arguments: str, killed_at: str | None = None) -> int:
    """One `isthmus registry` command."""

    def run() -> int:
        from isthmus.cli.main import main

        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        if killed_at is not None:
            logging.getLogger("isthmus").setLevel(logging.DEBUG)
            logging.getLogger("isthmus").addHandler(Killer(killed_at))
        return main(["registry", *arguments])

    return in_child(run)


def state(home: Path, name: str, server: str, models_config: Path) -> dict[str, Any]:
    """What everybody says about who is champion, without mending anything."""
    from isthmus.lineage import history, labels, registry, tracking
    from isthmus.serving.client import GrpcClient
    from isthmus.serving.label_sync import labels_on, read_config

    tracking.connect(home)
    entries = registry.history(name)
    client = registry.store_client()
    host, _, port = server.rpartition(":")
    with GrpcClient(host=host, port=int(port)) as serving:
        on_server = labels_on(serving, name)
    (entry,) = [each for each in read_config(models_config).model_config_list.config if each.name == name]
    return {
        "faults": history.faults(entries),
        "history": history.champion_moves(entries)[-1].to_version,
        "alias": int(client.get_registered_model(name).aliases["champion"]),
        "wanted": labels.wanted(name).labels,
        "server": on_server,
        "models_config": dict(entry.version_labels),
        "behind": labels.behind(name),
    }


def story(home: str, name: str, server: str, models_config: str) -> None:
    """Promote and roll back in turn, each killed at the next step."""
    import mlflow  # noqa: F401 - once, before the forks

    options = ["--home", home]
    champion_is_new = False
    for step in STEPS:
        action = "rollback" if champion_is_new else "promote"
        killed = command(action, name, *options, killed_at=step)
        then = command("sync", name, *options)
        read, write = os.pipe()

        def tell(write: int = write) -> int:
            os.write(write, json.dumps(state(Path(home), name, server, Path(models_config))).encode())
            return 0

        asked = in_child(tell)
        os.close(write)
        with os.fdopen(read) as answer:
            said = json.loads(answer.read() or "{}")
        champion_is_new = said["history"] != 1
        print(
            json.dumps(
                {"step": step, "action": action, "killed": killed, "next": then, "asked": asked} | said
            )
        )


if __name__ == "__main__":
    story(*sys.argv[1:])
