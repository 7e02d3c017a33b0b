"""A program that takes Docker's command line: its containers are processes of this machine that outlive its client.

FakeEngine(folder, server=["python", "-m", "isthmus.serving"]) writes the program to `folder/docker`. Like
tensorflow/serving's under Docker, a container ends neither by a SIGTERM to the client nor by the client's death.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

_PROGRAM = r"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

state, (verb, *arguments) = Path(sys.argv[1]), sys.argv[2:]
server, obeys = json.loads((state / "settings.json").read_text())
with (state / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[2:]) + "\n")


def pid_file(name):
    return state / f"{name}.pid"


if verb == "run":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    image = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
    options = dict(option.lstrip("-").partition("=")[::2] for option in arguments[:image])
    outside, inside, _ = options["volume"].split(":")
    base, version = inside.rsplit("/", 1)
    (state / "base").mkdir()
    (state / "base" / version).symlink_to(outside)
    flags = [flag.replace(base, str(state / "base")) for flag in arguments[image + 1 :]]
    started = subprocess.Popen([*server, *flags], start_new_session=True)
    pid_file(options["name"]).write_text(str(started.pid))
    while started.poll() is None or not obeys:
        time.sleep(0.05)
elif verb == "inspect":
    print(pid_file(arguments[-1]).read_text())
elif verb == "rm":
    path = pid_file(arguments[-1])
    if not path.exists():
        sys.exit(f"Error response from daemon: No such container: {arguments[-1]}")
    os.kill(int(path.read_text()), signal.SIGKILL)
    path.unlink()
"""


class FakeEngine:
    """The program, and what became of it."""

    def __init__(self, folder: Path, *, server: list[str], client_ends: bool = True) -> None:
        """Write the program.

        Args:
            folder: Where to; it becomes the PATH's first.
            server: The command that a container runs, before the flags.
            client_ends: Whether the client of a container that is gone ends by itself.
        """
        self._state = folder / "state"
        self._state.mkdir(parents=True)
        (self._state / "settings.json").write_text(json.dumps([server, client_ends]))
        (self._state / "engine.py").write_text(_PROGRAM)
        self.path = folder / "docker"
        script, state = self._state / "engine.py", self._state
        self.path.write_text(f'#!/bin/sh\nexec {sys.executable} {script} {state} "$@"\n')
        self.path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """The arguments of every call so far."""
        return [json.loads(line) for line in (self._state / "calls").read_text().splitlines()]

    def containers(self) -> list[str]:
        """The names of the containers that were not removed."""
        return [path.stem for path in self._state.glob("*.pid")]

    def clear(self) -> None:
        """End what a failed test has left."""
        for path in self._state.glob("*.pid"):
            os.kill(int(path.read_text()), signal.SIGKILL)
            path.unlink()
