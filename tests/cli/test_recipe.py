from __future__ import annotations

import json
from pathlib import Path

import pytest

from isthmus.cli.errors import UsageError
from isthmus.cli.main import main
from isthmus.cli.recipe import load, parse_assignment

ROOT = Path(__file__).parents[2]
MINIMAL = "name: shapes\ndata: {source: digits}\nmodel: {name: resnet18}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_plain_json(path: Path) -> None:
    recipe = load(path)
    assert json.loads(json.dumps(recipe.to_dict()))["name"] == recipe.name


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, MINIMAL), overrides={"train.epochs": 3, "model.name": "resnet34"})
    assert (recipe.train.epochs, recipe.model.name) == (3, "resnet34")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ndata: {source: digits}\n", "model is missing"),
        (MINIMAL + "train: {epochs: ten}\n", "train.epochs: input should be a valid integer"),
        (MINIMAL + "train: {epoch: 3}\n", "unknown key train.epoch; did you mean epochs? allowed: "),
        (MINIMAL + "trian: {}\n", "unknown key trian; did you mean train? allowed: name, description, data"),
        (MINIMAL.replace("shapes", "my shapes"), "name 'my shapes': use letters, digits, - and _ only"),
        (MINIMAL.replace("digits", "imagenet"), "data.source: input should be 'digits', 'fashion_mnist'"),
        ("- a\n- b\n", "a recipe is a mapping with the keys name, data and model"),
        ("name: [\n", "line 2: not YAML"),
    ],
)
def test_a_recipe_that_is_wrong_says_where_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, MINIMAL)
    assert main(["train", "--config", str(tmp_path / "other.yaml"), "--home", str(tmp_path / "home")]) == 2
    assert capsys.readouterr().err == (
        f"error: no recipe '{tmp_path}/other.yaml'; there are: {tmp_path}/recipe.yaml\n"
    )
    assert not (tmp_path / "home").exists()


def test_assignments_are_read_as_yaml() -> None:
    assert parse_assignment("train.lr=0.1") == ("train.lr", 0.1)
    assert parse_assignment("model.args={drop_rate: 0.2}") == ("model.args", {"drop_rate": 0.2})
    with pytest.raises(UsageError, match="write KEY=VALUE"):
        parse_assignment("train.lr")
