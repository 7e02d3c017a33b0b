"""The whole path, as a user runs it: how long, how much memory, how accurate, and what a second run does.

python benchmarks/path.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, Measured, run, write_section

STAGES = ("train", "export", "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        first = {stage: run(["make", "--silent", stage, f"STORE={store}", "SEED=0"]) for stage in STAGES}
        second = {stage: run(["make", "--silent", stage, f"STORE={store}", "SEED=0"]) for stage in STAGES}
        accuracies = [test_accuracy(store)]
        same, num_images = compare(store)
    for seed in range(1, seeds):
        with tempfile.TemporaryDirectory() as folder:
            run(["make", "--silent", "train", f"STORE={folder}", f"SEED={seed}"])
            accuracies.append(test_accuracy(Path(folder)))
    help_s = run([str(Path(sys.executable).with_name("isthmus")), "--help"]).cpu_s
    agreement = f"{same} of {num_images}"
    write_section("The whole path on the digits", table(first, second, accuracies, agreement, help_s))


def test_accuracy(store: Path) -> float:
    """Returns what the latest checkpoint reached on the test split."""
    record = json.loads((store / "checkpoints/digits/latest/checkpoint.json").read_text())
    return float(record["metrics"]["test_top1"])


def compare(store: Path) -> tuple[int, int]:
    """Returns on how many test images the pushed model says what torch says, and how many there are."""
    checkpoint = (store / "checkpoints/digits/latest").resolve()
    pushed = max((store / "serving/digits").iterdir(), key=lambda version: int(version.name))
    torch_says, tensorflow_says = (
        json.loads(
            subprocess.run(
                [sys.executable, ROOT / "benchmarks" / program, model, store / "data/digits/test"],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ).stdout
        )
        for program, model in (("predict_torch.py", checkpoint), ("predict_saved_model.py", pushed))
    )
    return sum(tensorflow_says[path] == says for path, says in torch_says.items()), len(torch_says)


def table(
    first: dict[str, Measured],
    second: dict[str, Measured],
    accuracies: list[float],
    agreement: str,
    help_s: float,
) -> str:
    """Returns the section's Markdown."""
    rows = [
        "| stage | seconds | CPU seconds | peak GiB | lines shown | second run ÷ first |",
        "|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        one, two = first[stage], second[stage]
        rows.append(
            f"| `make {stage}` | {one.wall_s:.0f} | {one.cpu_s:.0f} | {one.peak_rss_gib:.1f} "
            f"| {len(one.lines)} | {two.wall_s / one.wall_s:.2f} |"
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
            f"gives torch's class on {agreement} images. `isthmus --help`: {help_s:.2f} s CPU.",
        ]
    )


if __name__ == "__main__":
    main()
