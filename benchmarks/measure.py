"""Runs a command and measures its whole process tree; writes a section of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"


@dataclasses.dataclass(kw_only=True)
class Measured:
    """What one command took."""

    wall_s: float
    """Seconds from start to end."""
    cpu_s: float
    """Seconds of CPU, user and system, of it and all its children."""
    peak_rss_gib: float
    """Largest sum of the resident memory of its process tree, sampled five times a second.
    Pages that processes share count once for each."""
    peak_process_gib: float
    """Largest resident memory of one process of the tree, sampled as often."""
    lines: list[str]
    """What it printed, standard output and error together."""


def run(command: Sequence[str]) -> Measured:
    """Runs a command from the repository's root to its end; raises CalledProcessError when it fails."""
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    peak = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    after = os.times()
    watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Measured(
        wall_s=time.perf_counter() - started,
        cpu_s=after.children_user + after.children_system - before.children_user - before.children_system,
        peak_rss_gib=peak[0] / 2**30,
        peak_process_gib=peak[1] / 2**30,
        lines=output.splitlines(),
    )


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in (root, *root.children(recursive=True)):
                try:
                    resident = member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                total, peak[1] = total + resident, max(peak[1], resident)
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def write_section(title: str, body: str) -> None:
    """Replaces the section of docs/benchmarks.md that has this title, or appends it."""
    head = "# Benchmarks\n\nWritten by `make bench`; ratios within one run.\n"
    text = PAGE.read_text() if PAGE.exists() else head
    sections = text.split("\n## ")
    section = f"{title}\n\n{machine()}\n\n{body.strip()}\n"
    kept = [part for part in sections[1:] if part.split("\n", 1)[0] != title]
    PAGE.write_text(
        "\n## ".join([sections[0].rstrip() + "\n", *(part.rstrip() + "\n" for part in kept), section])
    )


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[2]
    return (
        f"{os.cpu_count()} cores of {model}, {memory_gib:.0f} GiB, Python {platform.python_version()}; "
        f"load average of the last quarter of an hour when it ended: {load:.1f}."
    )
