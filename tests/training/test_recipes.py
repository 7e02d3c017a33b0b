"""Every recipe in recipes/ names a model that timm has, and settings that training takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.cli.recipe import load
from isthmus.training.model import check_name, create_model
from isthmus.training.settings import check_settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_the_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["digits", "fashion_mnist", "imagefolder"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_trained(path: Path) -> None:
    recipe = load(path)
    check_name(recipe.model.name)
    check_settings(recipe.model, recipe.train)
    recipe.model.pretrained = False
    create_model(recipe.model, num_classes=10)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_run_it(path: Path) -> None:
    assert f"isthmus train --config recipes/{path.name}" in path.read_text()
