"""What each command does: it turns arguments into one call of the part that it names.

Every function takes the parsed arguments and returns the exit code; a part is imported when its command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cli import cluster
from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.cli.recipe import Recipe

DEFAULT_RECIPE = Path("recipes/digits.yaml")


def version_line() -> str:
    """Returns what `isthmus --version` prints."""
    return f"isthmus {metadata.version('isthmus')}"


def train(arguments: argparse.Namespace) -> int:
    """`isthmus train`: a checkpoint from images."""
    from isthmus.cli.console import routed
    from isthmus.training.train import train as run

    recipe = recipe_of(arguments) if arguments.timm_args is None else _recipe_of_timm(arguments)
    # torchrun says which process of a distributed run this is; the first one speaks for all.
    follows = os.environ.get("RANK", "0") != "0"
    what: dict[str, Any] = {
        "name": recipe.name,
        "data": recipe.data,
        "model": recipe.model,
        "train": recipe.train,
        "home": arguments.home,
        "recipe": recipe.to_dict(),
        "tracking_uri": arguments.tracking_uri,
    }
    wanted = recipe.sweep if arguments.sweep else None
    if arguments.sweep and wanted is None:
        raise UsageError("--sweep wants a recipe with a section sweep: what to try for which key")
    with routed("train", arguments.home, result_on_stdout=arguments.json, quiet=follows) as log:
        if wanted is not None:
            from isthmus.training.sweep import sweep

            result: Any = sweep(**what, sweep=wanted)
        else:
            result = run(**what, force=arguments.force)
    if not follows:
        report(arguments, dataclasses.asdict(result), log)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`isthmus export`: a verified bundle from a checkpoint, or from a model trained elsewhere."""
    from isthmus.cli.export import run

    return run(arguments)


def pipeline(arguments: argparse.Namespace) -> int:
    """`isthmus pipeline`: a pushed and registered version from a bundle; here, or on a cluster."""
    if arguments.runner != "local":
        return cluster.run(arguments)
    cluster.refuse_options(arguments)
    from isthmus.cli.console import routed
    from isthmus.cli.data import images
    from isthmus.tfx_pipeline.run import run_local

    recipe = recipe_of(arguments)
    bundle = arguments.bundle or latest(arguments.home / "bundles" / recipe.name, "isthmus export")
    with routed("pipeline", arguments.home, capture=True, result_on_stdout=arguments.json) as log:
        data, section = images(recipe, home=arguments.home)
        result = run_local(
            name=recipe.name,
            bundle=bundle,
            data_root=data.root if data else None,
            config=section,
            home=arguments.home,
            tracking_uri=arguments.tracking_uri,
            signing=recipe.signing,
        )
    report(arguments, dataclasses.asdict(result), log)
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """`isthmus pipeline schema`: the curated schema of a recipe's images."""
    from isthmus.cli.data import schema as run

    return run(arguments)


def predict(arguments: argparse.Namespace) -> int:
    """`isthmus pipeline predict`: a model's answers for a folder of images or for TFRecords, as Parquet."""
    from isthmus.cli.console import routed
    from isthmus.tfx_pipeline.predict import predict as run

    with routed("predict", arguments.home, capture=True, result_on_stdout=arguments.json) as log:
        result = run(
            model=arguments.model,
            data=arguments.data,
            output=arguments.output,
            home=arguments.home,
            tracking_uri=arguments.tracking_uri,
            batch_size=arguments.batch_size,
            shard_size=arguments.shard_size,
            workers=arguments.workers,
            further_beam_args=tuple(arguments.beam_arg),
        )
    report(arguments, dataclasses.asdict(result), log)
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """`isthmus serve`: TensorFlow Serving's API over pushed models, until a signal."""
    from isthmus.serving.__main__ import main as run

    return int(run(arguments.flags))


def registry(arguments: argparse.Namespace) -> int:
    """`isthmus registry ACTION`: versions, promotion and the history."""
    from isthmus.cli.registry import run

    return run(arguments)


def lineage(arguments: argparse.Namespace) -> int:
    """`isthmus lineage SUBJECT`: the chain from a served version back to the commit and the data."""
    from isthmus.cli.lineage import run

    return run(arguments)


def doctor(arguments: argparse.Namespace) -> int:
    """`isthmus doctor`: what this machine has; 1 where something is wrong."""
    from isthmus.cli.doctor import examine

    findings = examine(home=arguments.home, tracking_uri=arguments.tracking_uri)
    if arguments.json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding.line())
    return 1 if any(finding.problem for finding in findings) else 0


def recipe_of(arguments: argparse.Namespace, *, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe that the arguments name, with what they override in it."""
    from isthmus.cli.recipe import load

    given = overrides_of(arguments)
    return load(arguments.config or DEFAULT_RECIPE, overrides={**given, **(overrides or {})})


def _recipe_of_timm(arguments: argparse.Namespace) -> Recipe:
    """timm's args.yaml as a recipe, which is also written into the store: later commands take it by --config."""
    import yaml

    from isthmus.cli.recipe import from_values
    from isthmus.training.timm_args import translate

    if arguments.config is not None:
        raise UsageError("--config and --timm-args exclude each other: both are the recipe")
    translation = translate(arguments.timm_args)
    overrides = overrides_of(arguments)
    if translation.values["data"].get("source") == "timm" and overrides.get("data.source") == "imagefolder":
        # --data is where the reader of the file finds its data.
        del overrides["data.source"]
    recipe = from_values(translation.values, overrides=overrides, where=str(arguments.timm_args))
    path = arguments.home / "recipes" / f"{recipe.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    if os.environ.get("RANK", "0") == "0" and not arguments.json:
        if translation.without_effect:
            print(f"{arguments.timm_args}: changes no weight: {', '.join(translation.without_effect)}")
        print(f"{arguments.timm_args} as a recipe, for --config of the other commands: {path}")
    return recipe


def overrides_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Dotted recipe keys and values from --name, --model, --data, --set and the like."""
    from isthmus.cli.recipe import parse_assignment

    overrides: dict[str, Any] = {}
    for option, key in (
        ("name", "name"),
        ("model", "model.name"),
        ("epochs", "train.epochs"),
        ("batch_size", "train.batch_size"),
        ("seed", "train.seed"),
        ("precision", "export.precision"),
    ):
        value = getattr(arguments, option, None)
        if value is not None:
            overrides[key] = value
    if arguments.data is not None:
        overrides.update(_data_overrides(arguments.data))
    if getattr(arguments, "format", None) is not None:
        overrides["export.formats"] = list(dict.fromkeys(["saved_model", *arguments.format]))
    overrides.update(parse_assignment(text) for text in arguments.set)
    return overrides


def _data_overrides(data: str) -> dict[str, Any]:
    """A name of a source, or else the folder of an ImageFolder."""
    # Other images than the recipe's are not what its schema and its own input describe.
    others: dict[str, Any] = {"pipeline.schema": None, "pipeline.input": {}}
    if data in {"digits", "fashion_mnist"}:
        return {"data.source": data, "data.root": None, **others}
    return {"data.source": "imagefolder", "data.root": data, **others}


def latest(folder: Path, command: str) -> Path:
    """Where the link `latest` of a folder leads; `command` would make it."""
    latest = folder / "latest"
    if not latest.exists():
        raise UsageError(f"nothing in {folder} yet; run `{command}` first, or name one")
    return latest.resolve()


def report(arguments: argparse.Namespace, result: dict[str, Any], log: Path) -> None:
    """Print a command's result: as JSON where that is wanted, else where the log is."""
    if arguments.json:
        print(json.dumps(result, indent=2, default=str))
    else:
        print(f"everything else that was said is in {log}")
