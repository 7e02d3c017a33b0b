"""The whole path, as a user runs it: how long, how much memory, how accurate, and what a second run does.

python benchmarks/path.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, Measured, run, write_section

STAGES = ("train", "export", "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    accuracies, agreements = [], []
    first: dict[str, Measured] = {}
    second: dict[str, Measured] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as store:
            for stage in STAGES:
                measured = run(["make", "--silent", stage, f"STORE={store}", f"SEED={seed}"])
                first.setdefault(stage, measured)
            if seed == 0:
                second = {
                    stage: run(["make", "--silent", stage, f"STORE={store}", "SEED=0"]) for stage in STAGES
                }
            torch_top1, same = compare(Path(store))
            accuracies.append(torch_top1)
            agreements.append(same)
    help_s = run([str(Path(sys.executable).with_name("isthmus")), "--help"]).cpu_s
    write_section("The whole path on the digits", table(first, second, accuracies, agreements, help_s))


def compare(store: Path) -> tuple[float, str]:
    """Returns torch's accuracy on the test split, and on how many images the pushed model says the same."""
    checkpoint = (store / "checkpoints/digits/latest").resolve()
    pushed = max((store / "serving/digits").iterdir(), key=lambda version: int(version.name))
    split = store / "data/digits/test"
    answers = [
        json.loads(
            subprocess.run(
                [sys.executable, ROOT / "benchmarks" / program, model, split],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ).stdout
        )
        for program, model in (("predict_torch.py", checkpoint), ("predict_saved_model.py", pushed))
    ]
    labels = sorted(folder.name for folder in split.iterdir())
    torch_says, tensorflow_says = answers
    right = sum(labels[class_id] == path.split("/")[0] for path, class_id in torch_says.items())
    same = sum(tensorflow_says[path] == class_id for path, class_id in torch_says.items())
    return right / len(torch_says), f"{same} of {len(torch_says)}"


def table(
    first: dict[str, Measured],
    second: dict[str, Measured],
    accuracies: list[float],
    agreements: list[str],
    help_s: float,
) -> str:
    """Returns the section's Markdown."""
    rows = [
        "| stage | seconds | CPU seconds | peak GiB | lines shown | second run ÷ first |",
        "|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        one, two = first[stage], second[stage]
        num_lines = len([line for line in one.lines if not re.search("it/s|%", line)])
        rows.append(
            f"| `make {stage}` | {one.wall_s:.0f} | {one.cpu_s:.0f} | {one.peak_rss_gib:.1f} "
            f"| {num_lines} | {two.wall_s / one.wall_s:.2f} |"
        )
    total = sum(measured.wall_s for measured in first.values())
    again = sum(measured.wall_s for measured in second.values())
    peak = max(measured.peak_rss_gib for measured in first.values())
    rows.append(f"| together | {total:.0f} | | {peak:.1f} | | {again / total:.2f} |")
    return "\n".join(
        [
            *rows,
            "",
            f"Test accuracy, {len(accuracies)} seeds: {', '.join(f'{a:.2%}' for a in accuracies)}; "
            f"median {statistics.median(accuracies):.2%}. The pushed SavedModel, from the files' bytes, "
            f"gives torch's class on {'; '.join(agreements)} images. `isthmus --help`: {help_s:.2f} s CPU.",
        ]
    )


if __name__ == "__main__":
    main()
