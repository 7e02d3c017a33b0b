"""What `isthmus train` costs beside a bare loop over the same timm loader, model and optimizer.

python benchmarks/training.py [--epochs 8]

Both loops train in the same process, an epoch each in turns; then again in two processes under torchrun.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import ROOT, run, write_section

WORKER = str(ROOT / "benchmarks/training_worker.py")
# Of Fashion-MNIST a tenth: an epoch of half a minute would be measured no better.
RECIPES = {"digits": (), "fashion_mnist": ("data.max_per_class=600",)}
STARTS = 3


def speeds(recipe: str, home: Path, *, epochs: int, processes: int) -> list[dict[str, float]]:
    """What the worker measured, turn by turn."""
    launcher = [sys.executable]
    # One thread for each process: there are two cores.
    assignments = [*RECIPES[recipe]]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        assignments += ["train.threads=1"]
    file = str(ROOT / f"recipes/{recipe}.yaml")
    return last_line(run([*launcher, WORKER, "speed", file, str(home), str(epochs), *assignments]).lines)


def last_line(lines: Sequence[str]) -> list[dict[str, float]]:
    """The JSON value among what a worker printed."""
    turns: list[dict[str, float]] = next(json.loads(line) for line in reversed(lines) if line.startswith("["))
    return turns


def start(recipe: str, home: Path, which: str) -> float:
    """Seconds to the end of the first step."""
    command = [sys.executable, WORKER, "first-step", which, str(ROOT / f"recipes/{recipe}.yaml"), str(home)]
    lines = run([*command, *RECIPES[recipe]]).lines
    found = next(json.loads(line) for line in reversed(lines) if line.startswith("{"))
    return float(found["seconds"])


def rows(recipe: str, home: Path, epochs: int) -> list[str]:
    """Markdown rows of one recipe."""
    lines = []
    for processes in (1, 2):
        turns = speeds(recipe, home, epochs=epochs, processes=processes)
        lines.append(row([recipe, str(processes)], turns, shares=("starting", "waiting")))
        print(lines[-1], flush=True)
    return lines


def row(names: Sequence[str], turns: Sequence[dict[str, float]], *, shares: Sequence[str]) -> str:
    """A Markdown row: names, both speeds, their ratios (median, and best over best), and shares of the time."""
    ours, bare = [turn["isthmus"] for turn in turns], [turn["bare"] for turn in turns]
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    cells = [*names, f"{statistics.median(ours):.0f}", f"{statistics.median(bare):.0f}", f"{ratio:.2f}"]
    cells.append(f"{max(ours) / max(bare):.2f}")
    cells += [f"{100 * statistics.median(turn[share] for turn in turns):.1f} %" for share in shares]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            table += rows(recipe, Path(folder), arguments.epochs)
        starts = [
            [start("digits", Path(folder), which) for which in ("bare", "isthmus")] for _ in range(STARTS)
        ]
    bare, ours = (statistics.median(column) for column in zip(*starts, strict=True))
    body = [
        f"Images a second on the CPU, the median of {arguments.epochs - 1} epochs each, in turns; the ratios are the "
        "median of the turns' and best over best (≥ 0.97 wanted). The shares are of the bare loop's time: it waits for "
        "the first batch of an epoch, for which the loader starts its workers, and for all the others. One process "
        "uses the recipe's threads, two use one each.",
        "",
        "| recipe | processes | isthmus train | bare loop | ÷ | best ÷ best | first batch | others |",
        "|---|---|---|---|---|---|---|---|",
        *table,
        "",
        f"From the start of the process to the end of the first step (digits, prepared): {ours:.1f} s, and "
        f"{bare:.1f} s for the bare loop; the difference is MLflow's import and the run's record.",
    ]
    write_section("Training", "\n".join(body))


if __name__ == "__main__":
    main()
