"""A model that was trained elsewhere goes the whole way: export, pipeline, registry, and back along its lineage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPE = ROOT / "recipes/digits.yaml"
pytestmark = pytest.mark.slow


def isthmus(*arguments: str | Path) -> str:
    """Run a command to its end; returns what it said."""
    done = subprocess.run(
        [BIN / "isthmus", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(store: Path, first_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody brings along: weights, an ONNX file and the names of the classes, and nothing of ours."""
    del first_run
    folder = tmp_path_factory.mktemp("elsewhere")
    (weights,) = (store / "checkpoints/digits/latest").resolve().glob("*.safetensors")
    shutil.copy(weights, folder / "weights.safetensors")
    shutil.copy((store / "bundles/digits/latest").resolve() / "model.onnx", folder / "model.onnx")
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    return folder


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("digits_timm", ("--from-timm", "test_resnet", "--weights", "weights.safetensors")),
        # An ONNX file does not say how images reach it. With timm's usual mean and std this one is exported without
        # a murmur, for parity has nothing else to go by, and then the Evaluator refuses it: 24 % right.
        (
            "digits_onnx",
            ("--onnx", "model.onnx", "--set", "model.mean=[0.5,0.5,0.5]", "--set", "model.std=[0.5,0.5,0.5]"),
        ),
    ],
)
def test_it_is_pushed_registered_and_traced(
    name: str, origin: tuple[str, ...], elsewhere: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "from-elsewhere"
    given = [elsewhere / part if (elsewhere / part).is_file() else part for part in origin]
    common = ["--config", RECIPE, "--name", name, "--home", home]
    isthmus("export", *given, "--labels", elsewhere / "labels.txt", *common)
    result = json.loads(isthmus("pipeline", *common, "--json"))
    assert result["registered_version"] == 1
    assert result["metrics"]["accuracy"] > 0.95
    tree = isthmus("lineage", f"models:/{name}@champion", "--home", home)
    assert Path(result["pushed"]).name in tree
