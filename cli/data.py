"""The images of a recipe, for the pipeline's commands, and `isthmus pipeline schema`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.cli.recipe import Recipe
    from isthmus.tfx_pipeline.config import PipelineConfig
    from isthmus.training.data import PreparedData


def images(recipe: Recipe, *, home: Path) -> tuple[PreparedData | None, PipelineConfig]:
    """(what training prepared, or None where `pipeline.input.path` names the images; the section `pipeline`).

    Images of a path are split as training would split them, unless the section says otherwise.
    """
    from isthmus.training.data import prepare

    section = recipe.pipeline
    given = {
        key: getattr(recipe.data, key) if getattr(section.input, key) is None else getattr(section.input, key)
        for key in ("val_fraction", "test_fraction", "split_seed")
    }
    section = dataclasses.replace(section, input=dataclasses.replace(section.input, **given))
    return (None if section.input.path else prepare(recipe.data, home=home)), section


def schema(arguments: argparse.Namespace) -> int:
    """`isthmus pipeline schema`: write or widen the recipe's curated schema; 1 where it does not allow the images."""
    from isthmus.cli.commands import DEFAULT_RECIPE, recipe_of, report
    from isthmus.cli.console import routed
    from isthmus.tfx_pipeline.schema import curate

    recipe = recipe_of(arguments)
    file = arguments.config or DEFAULT_RECIPE
    path = arguments.output or recipe.pipeline.schema or file.with_name(f"{file.stem}.schema.pbtxt")
    with routed("schema", arguments.home, capture=True, result_on_stdout=arguments.json) as log:
        data, section = images(recipe, home=arguments.home)
        result = curate(
            name=recipe.name,
            data_root=data.root if data else None,
            labels=list(data.classes) if data else _labels_of_bundle(recipe.name, arguments.home),
            config=section,
            home=arguments.home,
            path=path,
            update=arguments.update,
        )
    report(arguments, dataclasses.asdict(result), log)
    return 1 if result.changes and not result.written else 0


def _labels_of_bundle(name: str, home: Path) -> list[str]:
    manifest = home / "bundles" / name / "latest" / "manifest.json"
    if not manifest.is_file():
        raise UsageError(
            f"the classes of pipeline.input.path are those of a bundle, and there is none in {manifest.parents[1]}; "
            "run `isthmus export` first"
        )
    labels: list[str] = json.loads(manifest.read_text(encoding="utf-8"))["model"]["labels"]
    return labels
