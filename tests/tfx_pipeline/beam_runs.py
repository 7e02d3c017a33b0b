"""Running a component's executor with Beam's options, and what it wrote: shared by the tests of Beam's engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import tensorflow as tf
from google.protobuf import json_format
from PIL import Image
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline import classes, evaluator, image_example_gen
from isthmus.tfx_pipeline.beam_options import beam_args
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.config import EvaluationGate
from isthmus.tfx_pipeline.predict import predict

LABELS = ["blue", "green", "red"]
SPLITS = ("train", "val", "test")
HERE = beam_args(workers=1)


def run_beam(
    executor_class: Any, args: list[str], inputs: Any, outputs: Any, properties: dict[str, Any]
) -> None:
    """Run a Beam component's executor with these options."""
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=args)
    for artifact in outputs.values():
        Path(artifact.uri).mkdir(parents=True, exist_ok=True)
    executor_class(context).Do(
        {k: [v] for k, v in inputs.items()}, {k: [v] for k, v in outputs.items()}, properties
    )


def records(folder: Path) -> list[bytes]:
    """Every record below a folder, sorted: how they are spread over files is the runner's business."""
    found = []
    for file in sorted(folder.glob("data_tfrecord*")):
        found += [bytes(record) for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator()]
    return sorted(found)


def images_below(root: Path, num_per_class: int) -> Path:
    """Tiny images, all different, in every split and class."""
    random = np.random.default_rng(3)
    for split in ("train", "val", "test"):
        for label in LABELS:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(num_per_class):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return root


def example_gen_properties(root: Path) -> dict[str, Any]:
    """ImageExampleGen's parameters for a folder with its own splits."""
    from isthmus.tfx_pipeline.sources import Source

    source = Source(pattern=str(root), path=str(root), kind="folder")
    classes_file = root.with_name("classes.json")
    classes_file.write_bytes(classes.content(LABELS))
    return {
        "input_base": source.pattern,
        "source": json.dumps(source.properties()),
        "splits": json.dumps(["train", "val", "test"]),
        "classes_file": str(classes_file),
        "fingerprint": "f",
        "code": "c",
    }


def examples_at(uri: Path) -> Any:
    """An Examples artifact with the three splits."""
    examples = standard_artifacts.Examples()
    examples.uri = str(uri)
    examples.splits = ["train", "val", "test"]
    return examples


def numbers_of(folder: Path) -> dict[str, Any]:
    """{feature: (records that have it, mean)} of a split's statistics."""
    import tensorflow_data_validation as tfdv

    statistics = tfdv.load_stats_binary(str(folder / "FeatureStats.pb"))
    return {
        feature.path.step[0]: (
            feature.num_stats.common_stats.num_non_missing
            or feature.string_stats.common_stats.num_non_missing,
            pytest.approx(feature.num_stats.mean),
        )
        for feature in statistics.datasets[0].features
    }


def ingested(args: list[str], images: Path, folder: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """What ImageExampleGen and StatisticsGen make of images with their own splits: the records and the numbers of each
    split, and between them the report."""
    examples, statistics = examples_at(folder / "examples"), standard_artifacts.ExampleStatistics()
    statistics.uri = str(folder / "statistics")
    properties = example_gen_properties(images)
    run_beam(image_example_gen.Executor, args, {}, {"examples": examples}, properties)
    run_beam(
        statistics_gen.Executor,
        args,
        {"examples": examples},
        {"statistics": statistics},
        {"exclude_splits": "[]"},
    )
    return (
        {split: records(Path(examples.uri, f"Split-{split}")) for split in SPLITS},
        json.loads(Path(examples.uri, "report.json").read_text()),
        {split: numbers_of(Path(statistics.uri, f"Split-{split}")) for split in SPLITS},
    )


def evaluated(
    args: list[str],
    examples: Any,
    make_model: Callable[..., Any],
    artifact_at: Callable[..., Any],
    folder: Path,
) -> tuple[evaluator.Evaluation, list[str], int]:
    """What the Evaluator finds of a bad model against a good champion: the evaluation, the refusals, the blessing."""
    gate = EvaluationGate(min_accuracy=0.2, max_accuracy_drop=0.05, min_slice_images=10)
    champion = make_model()
    champion.set_int_custom_property(HAS_MODEL, 1)
    outputs = {
        "evaluation": artifact_at(standard_artifacts.ModelEvaluation, folder / "evaluation"),
        "blessing": artifact_at(standard_artifacts.ModelBlessing, folder / "blessing"),
    }
    run_beam(
        evaluator.Executor,
        args,
        {"examples": examples, "model": make_model(quality="bad"), "baseline_model": champion},
        outputs,
        {
            "eval_config": json_format.MessageToJson(evaluator.eval_config(gate)),
            "example_splits": '["test"]',
            "gate": canonical_json(asdict(gate)),
        },
    )
    evaluation = outputs["evaluation"]
    return (
        evaluator.read_evaluation(evaluation),
        evaluator.refusals(evaluation),
        outputs["blessing"].get_int_custom_property("blessed"),
    )


def predictions(args: list[str], model: Path, images: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows of batch inference, by path."""
    predicted = predict(
        model=str(model),
        data=str(images),
        output=folder,
        home=folder.parent / "home",
        shard_size=20,
        batch_size=8,
        further_beam_args=tuple(args),
    )
    rows: list[dict[str, Any]] = (
        ds.dataset(predicted.output, format="parquet").to_table().sort_by("path").to_pylist()
    )
    return rows


def about(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What rows are compared with whose probabilities may differ by a relative 1e-5."""
    return [{**row, "probabilities": pytest.approx(row["probabilities"], rel=1e-5)} for row in rows]
