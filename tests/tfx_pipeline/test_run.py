"""run_local: bad input in one line, and the stories from a bundle to a pushed version, or to a refusal."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata

from isthmus.export.errors import ExportError
from isthmus.lineage import registry
from isthmus.tfx_pipeline.config import EvaluationGate, PipelineConfig, ServerGate
from isthmus.tfx_pipeline.errors import NotPushedError, PipelineError
from isthmus.tfx_pipeline.run import PipelineResult, run_local

COMPONENTS = 12
Run = Callable[..., PipelineResult]

#: Low enough that the bad model passes it: only the champion stands in its way.
GATE = EvaluationGate(min_accuracy=0.2)


@pytest.fixture
def home(tmp_path: Path, migrated_store: Path) -> Path:
    """A home folder with an empty registry."""
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_store, tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


@pytest.fixture
def run(images: Path, home: Path) -> Run:
    """Run the pipeline for a bundle."""

    def call(
        bundle: Path, *, config: PipelineConfig | None = None, data_root: Path = images
    ) -> PipelineResult:
        config = config or PipelineConfig(evaluation=GATE, server=ServerGate(num_images=3))
        return run_local(name="colours", bundle=bundle, data_root=data_root, config=config, home=home)

    return call


def versions(home: Path) -> list[str]:
    """Everything below the serving folder."""
    base = home / "serving" / "colours"
    return sorted(path.name for path in base.iterdir()) if base.exists() else []


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines for a person; the libraries' own go to a file."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("isthmus.")]


def test_no_bundle(run: Run, tmp_path: Path, home: Path) -> None:
    with pytest.raises(ExportError, match=r"no bundle at .*; run `isthmus export` first"):
        run(tmp_path / "nothing")
    assert sorted(path.name for path in home.iterdir()) == ["mlflow.db"]


def test_several_labels_an_image_are_refused(run: Run, multi_label_bundle: Path, home: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"/multi-label is a multi_label model; the pipeline's images have"
    ):
        run(multi_label_bundle)
    assert not (home / "pipeline").exists()


def test_a_name_that_is_too_long(images: Path, home: Path) -> None:
    with pytest.raises(PipelineError, match=r"has 64 characters, and a pipeline's name 63 at most"):
        run_local(name="c" * 64, bundle=Path("nothing"), data_root=images, config=PipelineConfig(), home=home)


def test_no_data(run: Run, make_bundle: Callable[..., Path], tmp_path: Path, home: Path) -> None:
    with pytest.raises(PipelineError, match="no data folder at "):
        run(make_bundle(), data_root=tmp_path / "nothing")
    assert sorted(path.name for path in home.iterdir()) == ["mlflow.db"]


def test_no_schema(run: Run, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"no schema at .*; leave pipeline.schema out to have one inferred"
    ):
        run(make_bundle(), config=PipelineConfig(schema=tmp_path / "schema.pbtxt"))


def test_a_bundle_of_another_store(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path, home: Path
) -> None:
    bundle = Path(shutil.copytree(make_bundle(), tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["export"]["mlflow"] = {"saved_model_id": "m-elsewhere"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError) as raised:
        run(bundle)
    assert str(raised.value) == (
        f"{bundle} was exported with another MLflow store: its model m-elsewhere is not in "
        f"sqlite:///{home}/mlflow.db; give that store as --tracking-uri, or export again with this one"
    )
    assert versions(home) == []


def test_a_second_run_at_the_same_time_is_refused(
    run: Run, make_bundle: Callable[..., Path], home: Path
) -> None:
    root = home / "pipeline" / "colours"
    root.mkdir(parents=True)
    code = f"""
import fcntl, os, sys
lock = open({str(root / ".lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(str(os.getpid())); lock.flush()
print("locked", flush=True); sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(
            PipelineError, match=f"another run of this pipeline is in progress .process {other.pid}"
        ):
            run(make_bundle())
        other.communicate()


def test_a_not_pushed_text_is_one_line() -> None:
    error = NotPushedError(["Evaluator: low\n  accuracy", "ServerValidator: it died"])
    assert str(error) == "not pushed, because Evaluator: low accuracy; and ServerValidator: it died"
    assert error.exit_code == 3


def test_a_corrupt_image_is_named(
    run: Run, make_bundle: Callable[..., Path], images: Path, home: Path
) -> None:
    (images / "val" / "red" / "000.png").write_bytes(b"this is no image")
    with pytest.raises(NotPushedError) as raised:
        run(make_bundle())
    assert str(raised.value) == (
        "not pushed, because ExampleValidator: the images: 1 of 96 images cannot be read: "
        "val/red/000.png (cannot identify image file); remove them, or set pipeline.on_corrupt to quarantine"
    )
    assert versions(home) == []


@pytest.mark.slow
def test_pushed_then_cached_then_repaired(
    run: Run, make_bundle: Callable[..., Path], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="isthmus.tfx_pipeline")
    first = run(make_bundle())
    assert versions(home) == [str(first.version)]
    assert first.pushed == str(home / "serving" / "colours" / str(first.version))
    assert first.metrics["accuracy"] == 1.0
    assert first.registered_version == 1
    assert not first.up_to_date
    assert len(first.run) == COMPONENTS
    lines = said(caplog)
    assert sum("Evaluator" in line and "accuracy 1.0000 on 30 images" in line for line in lines) == 1
    assert len(lines) <= 25

    caplog.clear()
    second = run(make_bundle())
    assert second.up_to_date
    assert second.run == []
    assert len(second.cached) == COMPONENTS
    assert (second.version, second.registered_version) == (first.version, 1)
    texts = said(caplog)
    assert f"nothing has changed: all {COMPONENTS} components are cached" in texts
    assert any(text.startswith("up to date: already pushed to ") for text in texts)

    # What the cache believes to be pushed is not there any more.
    shutil.rmtree(first.pushed)
    third = run(make_bundle())
    assert set(third.run) == {"Pusher", "Registrar"}
    assert versions(home) == [str(third.version)]
    assert third.registered_version == 1
    assert registry.get("colours", 1).served_version == third.version

    # Without its database TFX starts over; what was pushed and registered stays one.
    (home / "metadata.db").unlink()
    fourth = run(make_bundle())
    assert len(fourth.run) == COMPONENTS
    assert fourth.up_to_date
    assert (fourth.version, fourth.registered_version) == (third.version, 1)


def test_artifacts_that_the_metadata_do_not_know_are_removed(tmp_path: Path) -> None:
    """Also those of a home's second pipeline, when the first has made a new database."""
    from isthmus.tfx_pipeline.pipeline import local_metadata
    from isthmus.tfx_pipeline.run import clear_stale, only_run

    connection = local_metadata(tmp_path / "metadata.db")
    with metadata.Metadata(connection) as handle:
        kind = handle.store.put_context_type(metadata_store_pb2.ContextType(name="pipeline"))
        handle.store.put_contexts([metadata_store_pb2.Context(type_id=kind, name="first")])
    for name in ("first", "second"):
        artifact = tmp_path / "pipeline" / name / "StatisticsGen" / "statistics" / "2"
        artifact.mkdir(parents=True)
        (artifact / "FeatureStats.pb").write_bytes(b"of another database")
        with only_run(tmp_path / "pipeline" / name):
            clear_stale(tmp_path / "pipeline" / name, connection, name)
    left = {path.relative_to(tmp_path / "pipeline").as_posix() for path in tmp_path.rglob("*.pb")}
    assert left == {"first/StatisticsGen/statistics/2/FeatureStats.pb"}
    assert (tmp_path / "pipeline" / "second" / ".lock").is_file()


@pytest.mark.slow
def test_only_what_depends_on_a_change_runs_again(run: Run, make_bundle: Callable[..., Path]) -> None:
    run(make_bundle())
    config = PipelineConfig(evaluation=EvaluationGate(min_accuracy=0.3), server=ServerGate(num_images=3))
    assert set(run(make_bundle(), config=config).run) == {"Evaluator", "Pusher", "Registrar"}


@pytest.mark.slow
def test_a_better_model_is_pushed_over_a_worse_one(
    run: Run, make_bundle: Callable[..., Path], home: Path
) -> None:
    """The other way round is in test_blocked."""
    worse = run(make_bundle(quality="bad"))
    better = run(make_bundle())
    assert better.metrics["accuracy_change"] == pytest.approx(2 / 3)
    assert better.registered_version == 2
    assert versions(home) == sorted([str(worse.version), str(better.version)])


@pytest.mark.slow
def test_data_that_is_not_as_the_schema_says_blocks(
    run: Run, make_bundle: Callable[..., Path], images: Path, home: Path
) -> None:
    """The training split has lost a class; the others still have it."""
    shutil.rmtree(images / "train" / "red")
    with pytest.raises(NotPushedError) as raised:
        run(make_bundle())
    for split, number in (("val", 6), ("test", 10)):
        assert (
            f"ExampleValidator: {split} split, image/class/text: expected only blue, green, found red ({number})"
        ) in str(raised.value)
    assert versions(home) == []


#: Where the process is killed, one run after the other, each going on where the one before ended.
KILLS = {
    "after StatisticsGen": 'kill_at_line(" StatisticsGen ")',
    "after Evaluator": 'kill_at_line(" Evaluator ")',
    "in the Pusher, before the rename": 'kill_after(publishing.shutil, "copytree")',
    "in the Pusher, before MLMD knows": 'kill_after(publishing, "publish_directory")',
    "after Pusher": 'kill_at_line(" Pusher ")',
    "in the Registrar, before MLMD knows": 'kill_after(registry, "register_version")',
}


@pytest.mark.slow
def test_killed_and_started_again(
    run: Run, make_bundle: Callable[..., Path], images: Path, home: Path, tmp_path: Path
) -> None:
    """kill -9 at one moment after the other: in the end there is one of everything."""
    for moment, kill in KILLS.items():
        code = f"""
import logging, os, signal, sys
from pathlib import Path
from isthmus.lineage import registry
from isthmus.tfx_pipeline import publishing
from isthmus.tfx_pipeline.config import *
from isthmus.tfx_pipeline.run import run_local
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def kill_at_line(text):
    class Handler(logging.Handler):
        def emit(self, record):
            if text in record.getMessage() and "cached" not in record.getMessage():
                die()
    logging.getLogger("isthmus").addHandler(Handler())
def kill_after(module, name):
    original = getattr(module, name)
    def wrapper(*args, **kwargs):
        original(*args, **kwargs)
        die()
    setattr(module, name, wrapper)
logging.getLogger("isthmus").setLevel(logging.INFO)
{kill}
config = PipelineConfig(evaluation=EvaluationGate(min_accuracy=0.2), server=ServerGate(num_images=3, num_requests=3))
run_local(name="colours", bundle=Path({str(make_bundle())!r}), data_root=Path({str(images)!r}), config=config,
          home=Path({str(home)!r}))
"""
        killed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=1500, check=False
        )
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout[-1000:], killed.stderr[-2000:])
        # Whatever a server could load by now is one version, whole.
        complete = [name for name in versions(home) if name.isdecimal()]
        assert complete == complete[:1], moment
    config = PipelineConfig(evaluation=GATE, server=ServerGate(num_images=3, num_requests=3))
    result = run(make_bundle(), config=config)
    assert versions(home) == [str(result.version)]
    assert result.registered_version == 1
    assert len(registry.list_versions("colours")) == 1
    assert {"ImageExampleGen", "Evaluator", "ServerValidator"} <= set(result.cached)
