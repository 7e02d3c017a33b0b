"""A ResNet, a ConvNeXt, a ViT and a Swin, each trained a little on Fashion-MNIST and carried across the bridge.

python benchmarks/four_families.py [--home FOLDER] [--epochs N] [--per-class N]

Writes the table in docs/bridge.md. What it shows is parity of trained weights end to end, through all of the user's
own commands; how well they classify is not the point, though a net that has learnt nothing would prove less. With
--home, what was trained and exported before is found again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import ROOT, run

PAGE = ROOT / "docs/bridge.md"
#: The marks between which the table stands.
BEGIN, END = "<!-- benchmarks/four_families.py: begin -->", "<!-- end -->"
SIZE = 32
#: timm name and arguments: patches and windows as small as the images.
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": SIZE, "patch_size": 4, "depth": 6},
    "swin_tiny_patch4_window7_224": {
        "img_size": SIZE,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 48,
        "depths": [2, 2, 4, 2],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="keep everything there")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.home or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        rows = [
            carried(name, args, home=home, epochs=arguments.epochs, per_class=arguments.per_class)
            for name, args in MODELS.items()
        ]
    write(rows, epochs=arguments.epochs, per_class=arguments.per_class)


def carried(name: str, args: dict[str, Any], *, home: Path, epochs: int, per_class: int) -> dict[str, Any]:
    """Train and export one model with the user's commands; returns its manifest."""
    short = name.partition("_")[0]
    recipe = {
        "name": f"fashion_{short}",
        "description": f"{name} on a few of Fashion-MNIST's images",
        "data": {"source": "fashion_mnist", "val_fraction": 0.1, "max_per_class": per_class},
        "model": {
            "name": name,
            "args": args,
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "train": {"epochs": epochs, "batch_size": 50, "optimizer": "adamw", "lr": 1e-3, "workers": 0},
    }
    file = home / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    isthmus = str(Path(sys.executable).with_name("isthmus"))
    for command in ("train", "export"):
        done = run([isthmus, command, "--config", str(file), "--home", str(home)])
        print(f"{name}: {command}, {done.wall_s:.0f} s, {done.peak_process_gib:.1f} GiB", file=sys.stderr)
    bundle = home / "bundles" / str(recipe["name"]) / "latest"
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return manifest


def write(rows: list[dict[str, Any]], *, epochs: int, per_class: int) -> None:
    """Replace the table in docs/bridge.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    told = (
        f"{per_class} images a class, {epochs} epochs, {SIZE} × {SIZE}. Errors are in units of the gates (standard "
        "deviations of torch's logits between images); preprocessing counts pixel values."
    )
    table = "\n".join([told, "", *lines(rows)])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table."""
    stages = [stage["stage"] for stage in rows[0]["parity"]["stages"]]
    head = ["model", "test top-1", "exporter", "rung", *stages, "verdict"]
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        accuracy = row["training"]["metrics"].get("test_top1")
        cells = [
            f"`{row['model']['name']}`",
            "" if accuracy is None else f"{100 * accuracy:.1f} %",
            row["export"]["exporter"],
            row["export"]["rung"],
            *(
                f"{stage['error']:.0f}" if stage["stage"] == "preprocessing" else f"{stage['error']:.1e}"
                for stage in row["parity"]["stages"]
            ),
            "passed" if row["parity"]["passed"] else "FAILED",
        ]
        table.append(f"| {' | '.join(cells)} |")
    return table


if __name__ == "__main__":
    main()
