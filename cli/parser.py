"""The arguments of every command. Nothing heavy is imported here: `isthmus --help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from isthmus.cli import cluster, commands, label_sync, webhooks

_DEFAULT_HOME = Path(".isthmus")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `isthmus`; each command's `run` is the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog="isthmus",
        description="Train a timm model in PyTorch, ship it as a verified TensorFlow SavedModel, "
        "serve it, and know where it came from.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=commands.version_line())
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(subparsers)
    _add_export(subparsers)
    _add_pipeline(subparsers)
    _add_serve(subparsers)
    _add_registry(subparsers)
    _add_lineage(subparsers)
    _add_doctor(subparsers)
    return parser


def _add_train(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "train", help="train a timm model on a folder of images", description="Train a timm model in PyTorch."
    )
    _add_recipe_arguments(command)
    command.add_argument("--epochs", type=int, metavar="N", help="number of epochs (train.epochs)")
    command.add_argument("--batch-size", type=int, metavar="N", help="images a step (train.batch_size)")
    command.add_argument("--seed", type=int, metavar="N", help="seed of everything random (train.seed)")
    command.add_argument(
        "--timm-args",
        type=Path,
        metavar="ARGS_YAML",
        help="instead of a recipe: the args.yaml that timm's train script wrote",
    )
    command.add_argument(
        "--sweep", action="store_true", help="train what the recipe's section sweep lists, and keep the best"
    )
    command.add_argument("--force", action="store_true", help="train again although nothing changed")
    command.set_defaults(run=commands.train)


def _add_export(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a verified SavedModel bundle",
        description="Carry a checkpoint over ONNX into a SavedModel and prove that it is the same model.",
    )
    _add_recipe_arguments(command)
    command.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="default: the recipe's latest checkpoint"
    )
    command.add_argument("--force", action="store_true", help="export again although nothing changed")
    command.add_argument(
        "--precision", metavar="NAME", help="fp32, bf16 or int8 arithmetic (export.precision)"
    )
    command.add_argument(
        "--format",
        action="append",
        metavar="NAME",
        help="tflite: a model.tflite for LiteRT beside the SavedModel (export.formats)",
    )
    _add_elsewhere(command.add_argument_group("a model that was trained elsewhere (no recipe needed)"))
    command.add_argument(
        "--diagnose",
        action="store_true",
        help="where a gate fails: the first ONNX node that differs, and by how much",
    )
    _add_coverage(command.add_argument_group("every model family of timm"))
    command.set_defaults(run=commands.export)


def _add_coverage(group: Any) -> None:
    group.add_argument("--coverage", action="store_true", help="export each, and write the table of results")
    group.add_argument(
        "--models", nargs="+", metavar="NAME", help="modules or models of timm; default: every module"
    )
    group.add_argument(
        "--limit-s", type=float, default=600.0, metavar="S", help="of one process; default: %(default).0f"
    )
    group.add_argument(
        "--report", type=Path, default=Path("docs/coverage.md"), metavar="FILE", help="default: %(default)s"
    )


def _add_elsewhere(group: Any) -> None:
    model = group.add_mutually_exclusive_group()
    model.add_argument("--from-timm", metavar="NAME", help="this timm model, with --weights or timm's own")
    model.add_argument("--onnx", type=Path, metavar="FILE", help="an ONNX classifier with one image input")
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict of --from-timm: .safetensors, .pth, .pt, .bin",
    )
    group.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="real images to measure parity on; default: --data or the recipe's, else two photographs' windows",
    )
    group.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    group.add_argument(
        "--head", choices=("single_label", "multi_label"), help="softmax (default) or sigmoid answers"
    )
    group.add_argument(
        "--onnx-output", metavar="NAME", help="the output with the logits, where there are several"
    )


def _add_pipeline(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "pipeline",
        help="validate a bundle with TFX, push and register it",
        description="Run the TFX pipeline: validate data and bundle, push the SavedModel, register it.",
    )
    _add_recipe_arguments(command)
    command.add_argument(
        "--bundle", type=cluster.place, metavar="DIR", help="default: the recipe's latest bundle"
    )
    cluster.add_arguments(command)
    command.set_defaults(run=commands.pipeline)
    # Without an action the pipeline itself runs.
    actions = command.add_subparsers(metavar="ACTION", required=False)
    _add_schema(actions)
    _add_predict(actions)


def _add_schema(actions: Any) -> None:
    command = actions.add_parser(
        "schema",
        help="write or widen the schema that the recipe's images are held against",
        description="The curated schema: written from the recipe's images where there is none yet; where there is "
        "one, what it does not allow of them is listed (and the exit code 1), and --update allows it.",
    )
    _add_recipe_arguments(command)
    command.add_argument("--update", action="store_true", help="widen an existing schema")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="default: pipeline.schema, or <recipe>.schema.pbtxt"
    )
    command.set_defaults(run=commands.schema)


def _add_predict(actions: Any) -> None:
    command = actions.add_parser(
        "predict",
        help="batch inference with a pushed or registered model, to Parquet",
        description="Beam's RunInference over a SavedModel; a run that was killed goes on where it was.",
    )
    command.add_argument(
        "--model",
        required=True,
        metavar="DIR|models:/NAME@ALIAS",
        help="a pushed version, the folder above it, or a registered version",
    )
    command.add_argument(
        "--data", required=True, metavar="DIR|FILE", help="a folder of images, or TFRecords of Examples"
    )
    # Not a Path, which makes s3:/bucket of s3://bucket.
    command.add_argument("--output", required=True, metavar="DIR", help="folder of Parquet files, no URI")
    command.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="images a call; default: %(default)s"
    )
    command.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="images a file; default: %(default)s"
    )
    command.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes; default: %(default)s"
    )
    command.add_argument(
        "--beam-arg",
        action="append",
        default=[],
        metavar="=OPTION",
        help="of Beam, such as --beam-arg=--runner=FlinkRunner; may be repeated",
    )
    _add_store_arguments(command)
    _add_json(command)
    command.set_defaults(run=commands.predict)


def _add_serve(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "serve",
        help="serve pushed models with TensorFlow Serving's API",
        description="The embedded server; takes tensorflow_model_server's flags.",
        add_help=False,
        allow_abbrev=False,
    )
    command.set_defaults(run=commands.serve, takes_flags=True)


def _add_registry(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "registry", help="list, compare, promote and roll back registered versions"
    )
    actions = command.add_subparsers(metavar="ACTION", required=True)
    for action, summary, add in (
        ("list", "the versions of every registered model, or of one", _nothing_more),
        ("show", "one version: its hashes, gates, metrics and where it is pushed", _add_version),
        ("diff", "what differs between two versions", _add_two_versions),
        ("promote", "re-check a version's gates and hashes and make it champion", _add_promotion),
        ("rollback", "make the previous champion champion again", _add_rollback),
        ("sync", "tell servers and models.config what the registry says", _add_sync),
        ("history", "who moved which alias, when, from, to and why", _nothing_more),
        ("gc", "what no alias and no recent champion needs; removed only with --yes", _add_removal),
        ("webhook", "have MLflow tell a URL of moves, or show who is told", webhooks.add_webhook_arguments),
        ("listen", "receive MLflow's webhooks and run a command for each", webhooks.add_listen_arguments),
    ):
        parser = actions.add_parser(action, help=summary, description=summary)
        name_count = "?" if action in {"list", "webhook", "listen"} else None
        parser.add_argument("name", nargs=name_count, metavar="NAME", help="registered model, such as digits")
        add(parser)
        _add_store_arguments(parser)
        _add_json(parser)
        parser.set_defaults(run=commands.registry, action=action)


def _add_lineage(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "lineage",
        help="where a model came from, back to the commit and the data",
        description="Print the chain from a served version back to the git commit and the data digest.",
    )
    command.add_argument(
        "subject",
        nargs="?",
        metavar="SUBJECT",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, a pushed directory, a bundle, a checkpoint, "
        "an ONNX file, a git commit or a data set digest",
    )
    command.add_argument(
        "--server", metavar="HOST:PORT", help="ask a running server (gRPC) what it serves, instead of SUBJECT"
    )
    command.add_argument("--model", metavar="NAME", help="the served model's name, with --server")
    command.add_argument("--at", metavar="TIME", help="as of this UTC time, such as 2026-11-01T12:00")
    command.add_argument("--verify", action="store_true", help="recompute every hash that can be reached")
    command.add_argument(
        "--verification-key",
        type=Path,
        metavar="FILE",
        help="with --verify: public key or certificates (PEM) that must have signed the model",
    )
    command.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the chain as a graph, too"
    )
    command.add_argument(
        "--bom", type=Path, metavar="FILE", help="write the CycloneDX ML-BOM of the model, too"
    )
    _add_store_arguments(command)
    _add_json(command)
    command.set_defaults(run=commands.lineage)


def _add_doctor(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "doctor",
        help="what this machine has, what is wrong and how to mend it",
        description=doctor_description(),
    )
    _add_store_arguments(command)
    _add_json(command)
    command.set_defaults(run=commands.doctor)


def doctor_description() -> str:
    """Returns what `isthmus doctor --help` says."""
    return "Print Python, glibc, compiler, library versions, GPU, disk and tracking server, a line each."


def _add_recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="RECIPE", help=f"default: {commands.DEFAULT_RECIPE}")
    command.add_argument("--model", metavar="NAME", help="timm model (model.name)")
    command.add_argument("--data", metavar="SOURCE|DIR", help="digits, fashion_mnist or a folder of images")
    command.add_argument("--name", metavar="NAME", help="registered name (name)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the recipe; may be repeated",
    )
    _add_store_arguments(command)
    _add_json(command)


def _add_store_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--home", type=Path, default=_DEFAULT_HOME, metavar="DIR", help="default: %(default)s"
    )
    command.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow tracking server; default: an SQLite file in the home folder",
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as one JSON value")


def _nothing_more(parser: argparse.ArgumentParser) -> None:
    del parser


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="a number or @ALIAS")


def _add_two_versions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="a number or @ALIAS")
    parser.add_argument("other", metavar="OTHER", help="a number or @ALIAS")


def _add_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", default="", metavar="TEXT", help="the reason, kept in the history")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=int, metavar="VERSION", help="default: the champion before this one")
    _add_why(parser)
    _add_move(parser)


def _add_removal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove what is listed")


def _add_promotion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "version", nargs="?", default="@challenger", metavar="VERSION", help="default: %(default)s"
    )
    _add_why(parser)
    parser.add_argument(
        "--approve-by", metavar="NAME", help="who approved it, where the recipe asks for approval"
    )
    _add_move(parser)


def _add_move(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verification-key",
        type=Path,
        metavar="FILE",
        help="public key or certificates (PEM) that must have signed it; default: $ISTHMUS_VERIFICATION_KEY",
    )
    _add_sync(parser)


def _add_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="RECIPE",
        help="whose `registry` section holds; default: of the recipe that the version was made with",
    )
    label_sync.add_arguments(parser)
