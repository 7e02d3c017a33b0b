"""`isthmus pipeline --runner kubeflow|vertex`: the pipeline on a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.cli.recipe import Recipe
    from isthmus.tfx_pipeline.submission import Target

RUNNERS = ("local", "kubeflow", "vertex")

#: What only a cluster has a use for.
OPTIONS = (
    "compile_only",
    "submit",
    "image",
    "root",
    "endpoint",
    "project",
    "region",
    "service_account",
    "experiment",
    "schedule",
    "no_cache",
    "beam",
    "beam_endpoint",
)


def place(text: str) -> str | Path:
    """A URI stays text; anything else is a path."""
    return text if "://" in text else Path(text)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what only the runners kubeflow and vertex take; docs/runners.md explains each."""
    command.add_argument(
        "--runner", choices=RUNNERS, default="local", help="where the pipeline runs; default: %(default)s"
    )
    group = command.add_argument_group("a cluster (--runner kubeflow or vertex; docs/runners.md)")
    action = group.add_mutually_exclusive_group()
    action.add_argument(
        "--compile-only",
        type=Path,
        metavar="FILE",
        help="write the compiled pipeline (.json or .yaml) and start nothing; local inputs are uploaded below --root",
    )
    action.add_argument(
        "--submit", action="store_true", help="start a run, or with --schedule a recurring one"
    )
    group.add_argument("--image", metavar="IMAGE", help="container image of every task (make image)")
    group.add_argument("--root", metavar="URI", help="gs://… or s3://…: artifacts, uploads, pushed versions")
    group.add_argument("--endpoint", metavar="URL", help="Kubeflow's API, or a private endpoint of Vertex")
    group.add_argument("--project", metavar="ID", help="Google Cloud project")
    group.add_argument("--region", metavar="NAME", help="Google Cloud region, such as europe-west4")
    group.add_argument("--service-account", metavar="NAME", help="who the tasks are")
    group.add_argument(
        "--experiment", metavar="NAME", help="experiment of the run; default on Kubeflow: the model's name"
    )
    group.add_argument(
        "--schedule", metavar="CRON", help="five fields, such as '0 3 * * *': start it again and again"
    )
    group.add_argument("--no-cache", action="store_true", help="run every task although nothing changed")
    group.add_argument(
        "--beam",
        choices=("dataflow", "flink", "spark"),
        help="give Beam's work to an engine (pipeline.beam_args)",
    )
    group.add_argument("--beam-endpoint", metavar="HOST:PORT", help="Beam's job server of flink or spark")


def refuse_options(arguments: argparse.Namespace) -> None:
    """Refuse what only a cluster has a use for: without it, a pipeline that was to be compiled would be run and pushed.

    Raises:
        UsageError: One of them was given with the runner local.
    """
    given = [name for name in OPTIONS if getattr(arguments, name) not in (None, False)]
    if given:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options}: only for a cluster; add --runner kubeflow or --runner vertex")


def run(arguments: argparse.Namespace) -> int:
    """Compile the pipeline for a cluster and write or submit it."""
    from isthmus.cli.commands import report
    from isthmus.cli.console import routed
    from isthmus.tfx_pipeline import submission

    if arguments.compile_only is None and not arguments.submit:
        raise UsageError(f"--runner {arguments.runner}: say --submit, or --compile-only FILE")
    missing = [f"--{option}" for option in ("image", "root") if not getattr(arguments, option)]
    if missing:
        raise UsageError(f"--runner {arguments.runner} needs {' and '.join(missing)}")
    target = submission.Target(
        cluster=arguments.runner,
        image=arguments.image,
        root=arguments.root,
        endpoint=arguments.endpoint,
        project=arguments.project,
        region=arguments.region,
        service_account=arguments.service_account,
        experiment=arguments.experiment,
        schedule=arguments.schedule,
        cache=not arguments.no_cache,
    )
    if arguments.submit:
        target.check_submission()
    with routed("pipeline", arguments.home, capture=True, result_on_stdout=arguments.json) as log:
        result = _compiled(arguments, target)
    report(arguments, result, log)
    return 0


def _compiled(arguments: argparse.Namespace, target: Target) -> dict[str, Any]:
    import logging

    from isthmus.cli.commands import latest
    from isthmus.cli.data import images
    from isthmus.tfx_pipeline import submission
    from isthmus.tfx_pipeline.package import write_package

    logger = logging.getLogger(__name__)
    recipe = recipe_for_cluster(arguments)
    bundle = arguments.bundle or latest(arguments.home / "bundles" / recipe.name, "isthmus export")
    _give_beam_away(recipe, arguments, target)
    data, section = images(recipe, home=arguments.home)
    job = submission.prepare(
        name=recipe.name,
        bundle=bundle,
        data_root=data.root if data else None,
        config=section,
        tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
        target=target,
        signing=recipe.signing,
    )
    if arguments.compile_only is not None:
        write_package(arguments.compile_only, job.package)
        logger.info("compiled for %s: %s", target.cluster, arguments.compile_only)
        return {"compiled": arguments.compile_only, "places": job.places}
    submitted = submission.submit(job, target)
    logger.info("%s %s: %s", submitted.kind, submitted.id, submitted.url)
    return {**dataclasses.asdict(submitted), "places": job.places}


def recipe_for_cluster(arguments: argparse.Namespace) -> Recipe:
    """The recipe; --data is the pipeline's input where it is a URI, which is no folder to train on.

    As with a folder, the recipe's own schema and input are of other images; what --set says of either holds.
    """
    from isthmus.cli.commands import DEFAULT_RECIPE, overrides_of, recipe_of
    from isthmus.cli.recipe import load

    if arguments.data is None or "://" not in arguments.data:
        return recipe_of(arguments)
    without = argparse.Namespace(**{**vars(arguments), "data": None})
    others = {"pipeline.schema": None, "pipeline.input": {"path": arguments.data}}
    return load(arguments.config or DEFAULT_RECIPE, overrides={**others, **overrides_of(without)})


def _give_beam_away(recipe: Recipe, arguments: argparse.Namespace, target: Target) -> None:
    if arguments.beam is None:
        return
    from isthmus.tfx_pipeline.beam_options import engine_args

    if any(argument.startswith("--runner") for argument in recipe.pipeline.beam_args):
        raise UsageError(f"--beam {arguments.beam}: the recipe's pipeline.beam_args name a runner already")
    args = engine_args(
        arguments.beam,
        root=target.root,
        image=target.image,
        project=target.project,
        region=target.region,
        service_account=target.service_account,
        job_endpoint=arguments.beam_endpoint,
    )
    # Those of the recipe come last, and win.
    recipe.pipeline.beam_args = (*args, *recipe.pipeline.beam_args)
