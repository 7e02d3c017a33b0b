"""`isthmus export`: what the command line takes for models that were trained elsewhere, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.cli import export
from isthmus.cli.main import main
from isthmus.cli.parser import build_parser


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--weights", "w.pth"], "error: --weights goes with --from-timm or --onnx"),
        (["--images", "photos"], "error: --images goes with --from-timm or --onnx"),
        (["--onnx", "m.onnx", "--weights", "w.pth"], "error: --weights goes with --from-timm: an ONNX file"),
        (["--from-timm", "resnet18", "--checkpoint", "c"], "error: --checkpoint is a model trained here"),
        (["--onnx", "nowhere.onnx"], "error: --onnx nowhere.onnx is not a file"),
        (["--onnx", "m.onnx", "--images", "nowhere"], "error: --images nowhere is not a folder"),
        (
            ["--onnx", "m.onnx", "--set", "model.inputsize=3"],
            "error: the command line: unknown key model.inputsize",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--home", str(tmp_path / "home"), *arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith(text)
    assert said.count("\n") == 1


def test_a_foreign_model_needs_no_recipe() -> None:
    arguments = build_parser().parse_args(
        [
            "export",
            "--onnx",
            "nets/my net.v2.onnx",
            "--set",
            "model.input_size=[3,64,96]",
            "--set",
            "model.crop_pct=1.0",
        ]
    )
    recipe = export._recipe_of_elsewhere(arguments)
    origin = export._origin(arguments, recipe)
    assert recipe.name == "my_net"
    assert origin.onnx == Path("nets/my net.v2.onnx")
    assert origin.preprocessing == {"input_size": (3, 64, 96), "crop_pct": 1.0}


def test_a_foreign_model_may_have_one(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: flowers\ndata: {source: digits}\nmodel: {name: vit_tiny_patch16_224, crop_pct: 0.9}\n"
    )
    arguments = build_parser().parse_args(
        ["export", "--config", str(file), "--from-timm", "resnet18.a1_in1k"]
    )
    recipe = export._recipe_of_elsewhere(arguments)
    assert (recipe.name, recipe.model.name, recipe.model.crop_pct) == ("flowers", "resnet18.a1_in1k", 0.9)
