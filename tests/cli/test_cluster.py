"""`isthmus pipeline --runner kubeflow|vertex`: what is refused before anything is read, uploaded or loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from isthmus.cli.cluster import OPTIONS, add_arguments, place, recipe_for_cluster
from isthmus.cli.main import main
from isthmus.cli.parser import build_parser
from isthmus.tfx_pipeline.data_config import InputConfig

KUBEFLOW = ["--runner", "kubeflow", "--image", "registry.example/isthmus:1"]
VERTEX = ["--runner", "vertex", "--image", "registry.example/isthmus:1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--runner", "kubeflow"], "--runner kubeflow: say --submit, or --compile-only FILE"),
        (["--runner", "vertex", "--submit"], "--runner vertex needs --image and --root"),
        (
            [*KUBEFLOW, "--root", "s3://b/x", "--submit"],
            "--submit needs --endpoint, the URL of Kubeflow Pipelines' API",
        ),
        (
            [*VERTEX, "--root", "gs://b/x", "--submit"],
            "--submit needs --project and --region (or --compile-only)",
        ),
        (
            [*VERTEX, "--root", "s3://b/x", "--submit"],
            "--root s3://b/x: the runner vertex needs gs://BUCKET/FOLDER",
        ),
        (
            [*KUBEFLOW, "--root", "gs://b/x", "--schedule", "hourly", "--compile-only", "x.json"],
            "--schedule 'hourly': write the five fields of cron",
        ),
        (
            [*KUBEFLOW, "--root", "s3://b/x", "--compile-only", "x.json"],
            "; run `isthmus export` first, or name one",
        ),
        (
            [
                *KUBEFLOW,
                "--root",
                "gs://b/x",
                "--compile-only",
                "x.json",
                "--bundle",
                "gs://b/bundle",
                "--beam",
                "flink",
            ],
            "--beam flink needs --beam-endpoint HOST:PORT",
        ),
    ],
)
def test_one_line_says_what_is_missing(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", *arguments, "--home", str(tmp_path)]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_compiling_and_submitting_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["pipeline", *KUBEFLOW, "--submit", "--compile-only", "x.json"])
    assert raised.value.code == 2
    assert "not allowed with argument --submit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--compile-only", "p.json"], "--compile-only"),
        (["--submit", "--schedule", "0 3 * * *"], "--submit and --schedule"),
        (["--no-cache", "--runner", "local"], "--no-cache"),
        (["--beam", "flink", "--beam-endpoint", "flink:8099"], "--beam and --beam-endpoint"),
        (
            ["--image", "x", "--root", "gs://b/x", "--service-account", "a"],
            "--image and --root and --service-account",
        ),
    ],
)
def test_nothing_runs_here_where_a_cluster_was_meant(
    arguments: list[str], options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", *arguments, "--home", str(tmp_path / "home")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {options}: only for a cluster; add --runner kubeflow or --runner vertex"
    assert not (tmp_path / "home").exists()


def test_every_option_of_a_cluster_is_refused_without_one() -> None:
    command = argparse.ArgumentParser()
    add_arguments(command)
    assert {*OPTIONS, "runner"} == set(vars(command.parse_args([])))


RECIPE = """
name: shapes
data: {source: digits}
model: {name: resnet18}
pipeline: {schema: shapes.schema.pbtxt, input: {path: /old, span: 3, splits: hash}}
"""


@pytest.mark.parametrize(
    ("arguments", "schema", "expected"),
    [
        ([], "shapes.schema.pbtxt", InputConfig(path="/old", span=3, splits="hash")),
        (["--data", "s3://b/images"], None, InputConfig(path="s3://b/images")),
        (
            ["--data", "s3://b/day-{SPAN}", "--set", "pipeline.input.span=6"],
            None,
            InputConfig(path="s3://b/day-{SPAN}", span=6),
        ),
    ],
)
def test_other_images_are_not_held_against_the_recipes_schema(
    arguments: list[str], schema: str | None, expected: InputConfig, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    asked = ["pipeline", *KUBEFLOW, "--config", str(tmp_path / "recipe.yaml"), *arguments]
    recipe = recipe_for_cluster(build_parser().parse_args(asked))
    assert recipe.pipeline.schema == (None if schema is None else tmp_path / schema)
    assert recipe.pipeline.input == expected
    assert recipe.data.source == "digits"


def test_a_uri_is_no_path() -> None:
    assert place("gs://bucket//folder") == "gs://bucket//folder"
    assert place("bundles/digits") == Path("bundles/digits")
