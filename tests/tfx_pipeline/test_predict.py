"""isthmus pipeline predict: every image has a row, a killed run goes on, and nothing is mixed up."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import tensorflow as tf

from isthmus.export import bundle as bundles
from isthmus.lineage import registry, tracking
from isthmus.lineage.files import canonical_json, sha256_text
from isthmus.tfx_pipeline import publishing
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.predict import Predictions, check_written, part_name, predict

Run = Callable[..., Predictions]


@pytest.fixture
def run(tmp_path: Path, make_bundle: Callable[..., Path], shared_images: Path) -> Run:
    """Predict with the good model on the image folder."""

    def call(**arguments: Any) -> Predictions:
        given = {
            "model": str(make_bundle() / "saved_model"),
            "data": str(shared_images),
            "output": tmp_path / "out.parquet",
            "home": tmp_path / "home",
            "shard_size": 20,
            "batch_size": 8,
        }
        return predict(**{**given, **arguments})

    return call


def rows_of(result: Predictions) -> dict[str, dict[str, Any]]:
    """{path: row}."""
    rows = ds.dataset(result.output, format="parquet").to_table().to_pylist()
    assert len({row["path"] for row in rows}) == len(rows) == result.num_images
    return {row["path"]: row for row in rows}


def test_every_image_has_the_models_answer(
    run: Run, make_bundle: Callable[..., Path], shared_images: Path
) -> None:
    result = run()
    rows = rows_of(result)
    files = sorted(path.relative_to(shared_images).as_posix() for path in shared_images.rglob("*.png"))
    assert sorted(rows) == files
    assert (result.num_failed, result.num_shards, result.num_kept) == (0, 5, 0)
    saved_model = make_bundle() / "saved_model"
    bare = tf.saved_model.load(str(saved_model)).signatures["serving_default"](
        image_bytes=tf.constant([(shared_images / path).read_bytes() for path in files])
    )
    np.testing.assert_allclose(
        [rows[path]["probabilities"] for path in files], bare["probabilities"].numpy(), rtol=1e-5
    )
    assert [rows[path]["class_id"] for path in files] == bare["class_id"].numpy().tolist()
    manifest = bundles.load(make_bundle()).manifest
    for path in files:
        row = rows[path]
        assert row["label"] == Path(path).parent.name
        assert row["error"] is None
        assert row["model_version"] is None
        assert row["manifest_digest"] == sha256_text(canonical_json(manifest))


def test_images_that_cannot_be_read_are_rows(run: Run, images: Path) -> None:
    (images / "val" / "red" / "001.png").write_bytes(b"this is no image")
    (images / "val" / "red" / "003.png").write_bytes(b"")
    (images / "val" / "red" / "gone.png").symlink_to(images / "nowhere.png")
    result = run(data=str(images / "val"), shard_size=100, batch_size=100)
    rows = rows_of(result)
    failed = {path: row["error"] for path, row in rows.items() if row["error"] is not None}
    assert failed.keys() == {"red/001.png", "red/003.png"} | (failed.keys() & {"red/gone.png"})
    assert "cannot be read as JPEG, PNG, GIF, BMP or WebP" in failed["red/001.png"]
    assert rows["red/001.png"]["probabilities"] is None
    assert result.num_failed == len(failed)
    assert rows["red/000.png"]["label"] == "red"


def test_a_second_run_does_only_what_is_missing(run: Run, images: Path, tmp_path: Path) -> None:
    first = run(data=str(images))
    before = {path.name: path.stat().st_mtime_ns for path in first.output.glob("*.parquet")}
    lost = sorted(before)[2]
    (first.output / lost).unlink()
    second = run(data=str(images))
    assert (second.num_kept, second.num_shards, second.num_images) == (4, 5, first.num_images)
    after = {path.name: path.stat().st_mtime_ns for path in second.output.glob("*.parquet")}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [lost]
    assert run(data=str(images)).num_kept == 5
    (images / "val" / "red" / "000.png").write_bytes(b"another image")
    with pytest.raises(PipelineError, match=r"holds predictions of another run .another data.; give another"):
        run(data=str(images))


def test_killed_and_started_again(
    run: Run, make_bundle: Callable[..., Path], shared_images: Path, tmp_path: Path
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from isthmus.tfx_pipeline import predict
replace, renamed = os.replace, []
def replace_and_die(source, target):
    replace(source, target)
    renamed.append(target)
    if sum(str(one).endswith(".parquet") for one in renamed) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
predict.os.replace = replace_and_die
predict.predict(model={str(make_bundle() / "saved_model")!r}, data={str(shared_images)!r},
                output=Path({str(tmp_path / "out.parquet")!r}), home=Path({str(tmp_path / "home")!r}), shard_size=20)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    result = run()
    assert (result.num_kept, result.num_shards, result.num_images) == (2, 5, 96)
    assert len(rows_of(result)) == 96


def test_records_give_what_their_images_give(
    run: Run, examples: Any, tmp_path: Path, shared_images: Path
) -> None:
    from_files = rows_of(run(data=str(shared_images / "test")))
    folder = Path(examples.path(split="test"))
    from_records = rows_of(run(data=str(folder), output=tmp_path / "records"))
    assert {path.removeprefix("test/"): row["probabilities"] for path, row in from_records.items()} == {
        path: pytest.approx(row["probabilities"], rel=1e-5) for path, row in from_files.items()
    }
    (record,) = folder.iterdir()
    torn = tmp_path / "torn.tfrecord"
    with tf.io.TFRecordWriter(str(torn)) as writer:
        for one in tf.data.TFRecordDataset(str(record), compression_type="GZIP").as_numpy_iterator():
            writer.write(one)
    torn.write_bytes(torn.read_bytes()[:-10])
    rows = rows_of(run(data=str(torn), output=tmp_path / "torn"))
    assert len(rows) == 30
    assert rows["torn.tfrecord#29"]["error"].startswith(
        "the file ends here, for it is no whole TFRecord file: "
    )


def test_the_model_may_be_a_serving_folder_a_store_or_a_registered_version(
    run: Run,
    make_bundle: Callable[..., Path],
    shared_images: Path,
    tmp_path: Path,
    migrated_store: Path,
    bucket: str,
) -> None:
    bundle, data = make_bundle(), str(shared_images / "val" / "red")
    base = tmp_path / "serving"
    (base / "7").mkdir(parents=True)
    version = publishing.push(bundle / "saved_model", str(base))
    local = run(model=str(base), data=data, output=tmp_path / "local")
    assert {row["model_version"] for row in rows_of(local).values()} == {version}

    place = f"{bucket}/{tmp_path.name}"
    stored = publishing.push(bundle / "saved_model", place)
    remote = run(model=place, data=data, output=tmp_path / "remote")
    assert {row["model_version"] for row in rows_of(remote).values()} == {stored}

    (tmp_path / "home").mkdir(exist_ok=True)
    shutil.copy(migrated_store, tmp_path / "home" / "mlflow.db")
    tracking.connect(tmp_path / "home")
    registry.register_version(
        name="colours",
        manifest=bundles.load(bundle).manifest,
        bundle=bundle,
        pushed_path=base / str(version),
        served_version=version,
    )
    registered = run(model="models:/colours@champion", data=data, output=tmp_path / "registered")
    assert rows_of(registered) == rows_of(local)

    # Workers elsewhere get the path, and a path in a temporary folder says nothing to them.
    registry.register_version(
        name="stored",
        manifest=bundles.load(bundle).manifest,
        bundle=bundle,
        pushed_path=f"{place}/{stored}",
        served_version=stored,
    )
    elsewhere = {"data": data, "further_beam_args": ("--runner=FlinkRunner",), "output": tmp_path / "flink"}
    with pytest.raises(
        PipelineError, match=r"^--model models:/stored@champion had to be fetched to this .* copy the"
    ):
        run(model="models:/stored@champion", **elsewhere)
    assert not (tmp_path / "flink").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch_size": 0}, "--batch-size must be ≥ 1, got 0"),
        (
            {"model": "/nowhere"},
            "no model at /nowhere: neither it nor a numbered folder in it holds a saved_model.pb",
        ),
        (
            {"model": "models:/colours"},
            "--model models:/colours: write models:/NAME@ALIAS or models:/NAME/NUMBER",
        ),
        (
            {"output": "gs://answers/today"},
            "--output gs://answers/today: predictions are written to a folder of this machine, or to one",
        ),
        (
            {"model": "s3://models/digits", "further_beam_args": ("--runner", "FlinkRunner")},
            "--model s3://models/digits had to be fetched to this machine's temporary folder, which the workers",
        ),
        ({"data": "/nowhere"}, "no images and no TFRecords in /nowhere; give a folder of images"),
    ],
)
def test_what_cannot_be_used_is_one_line(run: Run, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(PipelineError) as raised:
        run(**arguments)
    assert str(raised.value).startswith(text)


def test_a_model_that_was_changed_is_refused(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    saved_model = Path(shutil.copytree(make_bundle() / "saved_model", tmp_path / "changed"))
    (saved_model / "saved_model.pb").write_bytes(b"something else")
    with pytest.raises(
        PipelineError, match="is damaged: its files are not those that its manifest describes"
    ):
        run(model=str(saved_model))


def test_an_output_that_the_workers_do_not_share_is_said(tmp_path: Path) -> None:
    """An engine's workers may have written, each to a disk of its own."""
    (tmp_path / part_name(1, 3)).touch()
    with pytest.raises(
        PipelineError, match=r"^2 of 3 files are not in .* part-00000-of-00003.parquet: the engine's"
    ):
        check_written(tmp_path, 3, elsewhere=True)
    for number in (0, 2):
        (tmp_path / part_name(number, 3)).touch()
    check_written(tmp_path, 3, elsewhere=True)


def test_an_output_with_other_files_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").mkdir()
    (tmp_path / "out.parquet" / "notes").write_text("mine")
    with pytest.raises(PipelineError, match="holds files that are no predictions; give another --output"):
        run()
    assert [path.name for path in (tmp_path / "out.parquet").iterdir()] == ["notes"]
