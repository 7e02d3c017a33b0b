"""The tasks' entry point: what it does around TFX's own. The whole of it runs in test_kubeflow_execution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isthmus.tfx_pipeline import container, remote
from isthmus.tfx_pipeline.beam_options import beam_args, engine_args, runs_elsewhere
from isthmus.tfx_pipeline.errors import PipelineError

MODEL = {"schemaTitle": "tfx.Model"}


def executor_input(bucket: str, output_file: Path) -> dict[str, Any]:
    """One artifact in, one out, and a parameter that is a file."""
    return {
        "inputs": {
            "artifacts": {"model": {"artifacts": [{"uri": f"{bucket}/in", "type": MODEL, "metadata": {}}]}},
            "parameterValues": {"schema_file": f"{bucket}/schemas/1/schema.pbtxt", "name": "colours"},
        },
        "outputs": {
            "artifacts": {"blessing": {"artifacts": [{"uri": f"{bucket}/out", "type": MODEL}]}},
            "outputFile": str(output_file),
        },
    }


def test_remote_artifacts_are_folders_here_and_go_back(bucket: str, tmp_path: Path) -> None:
    remote.write_bytes(f"{bucket}/in/saved_model.pb", b"model")
    remote.write_bytes(f"{bucket}/schemas/1/schema.pbtxt", b"feature {}")
    output_file = tmp_path / "outputs" / "output_metadata.json"
    given = executor_input(bucket, output_file)
    staging = container.Staging(given, tmp_path / "scratch")
    staging.fetch()
    seen = staging.executor_input
    model = Path(seen["inputs"]["artifacts"]["model"]["artifacts"][0]["uri"])
    blessing = Path(seen["outputs"]["artifacts"]["blessing"]["artifacts"][0]["uri"])
    assert (model / "saved_model.pb").read_bytes() == b"model"
    assert Path(seen["inputs"]["parameterValues"]["schema_file"]).read_bytes() == b"feature {}"
    assert seen["inputs"]["parameterValues"]["name"] == "colours"

    (blessing / "BLESSED").write_bytes(b"")
    told = {
        "artifacts": {
            "blessing": {"artifacts": [{"uri": str(blessing), "metadata": {"current": str(model)}}]}
        }
    }
    Path(seen["outputs"]["outputFile"]).parent.mkdir(parents=True)
    Path(seen["outputs"]["outputFile"]).write_text(json.dumps(told))
    staging.send()
    assert remote.exists(f"{bucket}/out/BLESSED")
    (artifact,) = json.loads(output_file.read_text())["artifacts"]["blessing"]["artifacts"]
    assert artifact == {"uri": f"{bucket}/out", "metadata": {"current": f"{bucket}/in"}}
    assert given == executor_input(bucket, output_file), "the caller's own was changed"


def test_a_second_attempt_replaces_what_the_first_left(bucket: str, tmp_path: Path) -> None:
    """Another number of shards, and a file of the same size with another content."""
    attempts: list[dict[str, bytes]] = [
        {"a-00000-of-00002.gz": b"01", "a-00001-of-00002.gz": b"23", "stats": b"first!"},
        {"a-00000-of-00001.gz": b"0123", "stats": b"second"},
    ]
    for number, written in enumerate(attempts):
        given = executor_input(f"{bucket}/{tmp_path.name}", tmp_path / "output_metadata.json")
        given["inputs"] = {}
        staging = container.Staging(given, tmp_path / f"scratch-{number}")
        staging.fetch()
        seen = staging.executor_input["outputs"]
        folder = Path(seen["artifacts"]["blessing"]["artifacts"][0]["uri"], "Split-test")
        folder.mkdir()
        for name, content in written.items():
            (folder / name).write_bytes(content)
        Path(seen["outputFile"]).parent.mkdir(parents=True)
        Path(seen["outputFile"]).write_text("{}")
        staging.send()
        place = f"{bucket}/{tmp_path.name}/out"
        names = [entry.name for entry in remote.files(place)]
        there = {name: remote.read_bytes(f"{place}/{name}") for name in names}
        assert there == {f"Split-test/{name}": content for name, content in written.items()}


def test_nothing_is_told_when_an_output_does_not_arrive(bucket: str, tmp_path: Path) -> None:
    output_file = tmp_path / "output_metadata.json"
    given = executor_input("s3://no-such-bucket", output_file)
    given["inputs"] = {}
    staging = container.Staging(given, tmp_path / "scratch")
    staging.fetch()
    seen = staging.executor_input
    Path(seen["outputs"]["artifacts"]["blessing"]["artifacts"][0]["uri"], "BLESSED").write_bytes(b"x")
    with pytest.raises(PipelineError, match=r"^cannot write s3://no-such-bucket/out/BLESSED: "):
        staging.send()
    assert not output_file.exists()


def test_a_foreseen_error_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = {
        "inputs": {
            "parameterValues": {"bundle": str(tmp_path / "none"), "manifest_sha256": "m", "code": "c"},
        },
        "outputs": {
            "artifacts": {"model": {"artifacts": [{"uri": str(tmp_path / "model"), "type": MODEL}]}},
            "outputFile": str(tmp_path / "output.json"),
        },
    }
    spec = {"parameters": {name: {"parameterType": "STRING"} for name in given["inputs"]["parameterValues"]}}
    argv = ["--executor_class_path", "isthmus.tfx_pipeline.bundle_importer.Executor"]
    argv += ["--json_serialized_invocation_args", json.dumps(given)]
    argv += ["--json_serialized_inputs_spec_args", json.dumps(spec)]
    assert container.main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: no bundle at {tmp_path / 'none'}; run `isthmus export` first"
    assert not (tmp_path / "output.json").exists()


@pytest.mark.parametrize(
    ("args", "elsewhere"),
    [
        (beam_args(workers=1), False),
        (beam_args(workers=2), False),
        (["--runner=DirectRunner"], False),
        (["--runner=DataflowRunner"], True),
        (["--runner", "FlinkRunner"], True),
        (["--runner", "DirectRunner"], False),
        ([], False),
    ],
)
def test_whether_beam_works_elsewhere(args: list[str], elsewhere: bool) -> None:
    assert runs_elsewhere(args) is elsewhere


def test_the_engines_options_are_beams_own() -> None:
    """Every option is one that Beam parses, with the value that was meant."""
    from apache_beam.options import pipeline_options as options

    dataflow = options.PipelineOptions(
        engine_args(
            "dataflow",
            root="gs://b/team",
            image="img:1",
            project="p",
            region="europe-west4",
            service_account="a@p",
        )
    )
    assert dataflow.view_as(options.StandardOptions).runner == "DataflowRunner"
    cloud = dataflow.view_as(options.GoogleCloudOptions)
    assert (cloud.project, cloud.region, cloud.temp_location) == ("p", "europe-west4", "gs://b/team/beam")
    assert cloud.service_account_email == "a@p"
    assert dataflow.view_as(options.WorkerOptions).sdk_container_image == "img:1"
    assert dataflow.view_as(options.SetupOptions).sdk_location == "container"
    for engine in ("flink", "spark"):
        portable = options.PipelineOptions(engine_args(engine, root="gs://b", job_endpoint="flink:8099"))
        assert portable.view_as(options.StandardOptions).runner == "PortableRunner"
        view = portable.view_as(options.PortableOptions)
        assert (view.job_endpoint, view.environment_type) == ("flink:8099", "EXTERNAL")
        assert view.environment_config == "localhost:50000"


@pytest.mark.parametrize(
    ("engine", "settings", "text"),
    [
        ("dataflow", {"root": "gs://b", "image": "i"}, "--beam dataflow needs --project, --region$"),
        (
            "dataflow",
            {"root": "s3://b", "image": "i", "project": "p", "region": "r"},
            "needs a root on gs://, got s3://b$",
        ),
        ("flink", {"root": "gs://b"}, "--beam flink needs --beam-endpoint HOST:PORT"),
    ],
)
def test_an_engine_that_lacks_something(engine: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        engine_args(engine, **settings)
