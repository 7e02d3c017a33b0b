"""`isthmus export`: of a checkpoint, of a model that was trained elsewhere, or of every family of timm."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cli import commands
from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.cli.recipe import Recipe
    from isthmus.export.elsewhere import Origin, ReferenceImages

_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_ONLY_ELSEWHERE = ("weights", "onnx_output", "labels", "head", "images")


def run(arguments: argparse.Namespace) -> int:
    """Carry out one `isthmus export`; returns the exit code."""
    if arguments.coverage:
        return _coverage(arguments)
    if arguments.from_timm or arguments.onnx:
        return _elsewhere(arguments)
    for option in _ONLY_ELSEWHERE:
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} goes with --from-timm or --onnx")
    return _checkpoint(arguments)


def _checkpoint(arguments: argparse.Namespace) -> int:
    from isthmus.cli.console import routed

    recipe = commands.recipe_of(arguments)
    checkpoint = arguments.checkpoint or commands.latest(
        arguments.home / "checkpoints" / recipe.name, "isthmus train"
    )
    with routed("export", arguments.home, result_on_stdout=arguments.json) as log:
        bundle = _export(arguments, recipe, checkpoint)
    commands.report(arguments, {"bundle": bundle}, log)
    return 0


def _export(
    arguments: argparse.Namespace, recipe: Recipe, checkpoint: Path, *, images: ReferenceImages | None = None
) -> Path:
    from isthmus.export.run import export

    return export(
        name=recipe.name,
        checkpoint=checkpoint,
        data_root=None,
        config=recipe.export,
        home=arguments.home,
        tracking_uri=arguments.tracking_uri,
        recipe=recipe.to_dict(),
        force=arguments.force,
        images=images,
        diagnose=arguments.diagnose,
        signing=recipe.signing,
    )


def _elsewhere(arguments: argparse.Namespace) -> int:
    from isthmus.cli.console import routed
    from isthmus.export.elsewhere import adopt, reference_images

    if arguments.checkpoint:
        raise UsageError("--checkpoint is a model trained here; give it or --from-timm or --onnx, not both")
    if arguments.onnx and arguments.weights:
        raise UsageError("--weights goes with --from-timm: an ONNX file holds its own")
    recipe = _recipe_of_elsewhere(arguments)
    with routed("export", arguments.home, result_on_stdout=arguments.json) as log:
        images = reference_images(_images(arguments, recipe), home=arguments.home)
        checkpoint = adopt(
            _origin(arguments, recipe),
            name=recipe.name,
            home=arguments.home,
            timeout_s=recipe.export.stage_timeout_s,
        )
        bundle = _export(arguments, recipe, checkpoint, images=images)
    commands.report(arguments, {"bundle": bundle, "checkpoint": checkpoint}, log)
    return 0


def _recipe_of_elsewhere(arguments: argparse.Namespace) -> Recipe:
    """The recipe that was given, or the smallest one there is: a name and a model."""
    called = arguments.from_timm or arguments.onnx.stem
    overrides: dict[str, Any] = {"model.name": called}
    if arguments.config is not None:
        return commands.recipe_of(arguments, overrides=overrides)
    from isthmus.cli.recipe import from_values

    values = {
        "name": arguments.name or re.sub(r"[^A-Za-z0-9_-]", "_", called.partition(".")[0] or called),
        "data": {},
        "model": {"name": called},
    }
    return from_values(values, overrides=commands.overrides_of(arguments), where="the command line")


def _images(arguments: argparse.Namespace, recipe: Recipe) -> Path | None:
    """Folder of the reference images: --images, or the data of a recipe or of --data; None: photographs."""
    if arguments.images is not None:
        return Path(arguments.images)
    if arguments.config is None and arguments.data is None:
        return None
    from isthmus.training.data import prepare

    return Path(prepare(recipe.data, home=arguments.home).root)


def _origin(arguments: argparse.Namespace, recipe: Recipe) -> Origin:
    from isthmus.export.elsewhere import Origin

    return Origin(
        architecture=arguments.from_timm,
        weights=arguments.weights,
        onnx=arguments.onnx,
        onnx_output=arguments.onnx_output,
        labels=arguments.labels,
        head=arguments.head,
        args=dict(recipe.model.args),
        preprocessing={
            key: value for key in _PREPROCESSING if (value := getattr(recipe.model, key)) is not None
        },
    )


def _coverage(arguments: argparse.Namespace) -> int:
    """0 where every family that has been run passed, else 1."""
    import json

    from isthmus.cli.console import routed
    from isthmus.export import coverage, coverage_page

    config = commands.recipe_of(arguments).export
    run_ = coverage.CoverageRun(
        home=arguments.home, config=config, limit_s=arguments.limit_s, force=arguments.force
    )
    with routed("coverage", arguments.home, result_on_stdout=arguments.json) as log:
        families = run_.families()
        for result in run_.cover(arguments.models or families):
            coverage.log.info("%s", coverage.line(result))
            coverage_page.write(arguments.report, coverage.read_results(run_.state), families=families)
        results = coverage.read_results(run_.state)
        coverage_page.write(arguments.report, results, families=families)
    failed = [family for family, result in results.items() if not result["passed"]]
    if arguments.json:
        print(json.dumps({"report": str(arguments.report), "results": list(results.values())}, indent=2))
    else:
        print(
            f"{len(results) - len(failed)} of {len(results)} pass: {arguments.report}; the rest is in {log}"
        )
    return 1 if failed else 0
