"""ExampleValidator: thresholds on what ImageExampleGen found, the schema, drift and skew, each said in full."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_serving.apis import model_pb2
from tfx.components.statistics_gen.executor import Executor as StatisticsExecutor
from tfx.types import standard_artifacts

from isthmus.serving.prediction_log import PredictionLog
from isthmus.tfx_pipeline import data_pipeline, data_report, example_validator, sources
from isthmus.tfx_pipeline import schema as schemas
from isthmus.tfx_pipeline.anomalies import anomaly_sentences, read_findings
from isthmus.tfx_pipeline.artifacts import DataReportPage
from isthmus.tfx_pipeline.baselines import Accepted, baseline_of
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.data_config import DataGate, DriftConfig, InputConfig
from isthmus.tfx_pipeline.distances import by_chance
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import read_report

LABELS = ["blue", "green", "red"]
Make = Callable[..., Any]


@pytest.fixture(scope="session")
def statistics_of(execute: Make, artifact_at: Make) -> Make:
    """StatisticsGen, as the pipeline has it."""

    def make(examples: standard_artifacts.Examples, target: Path) -> standard_artifacts.ExampleStatistics:
        statistics = artifact_at(standard_artifacts.ExampleStatistics, target)
        _, component = data_pipeline.intake(
            sources.Source(pattern="x", path="x", kind="folder"),
            classes_file="c",
            code={"ImageExampleGen": ""},
        )
        execute(
            StatisticsExecutor,
            inputs={"examples": examples},
            outputs={"statistics": statistics},
            properties={"stats_options_json": component.exec_properties["stats_options_json"]},
        )
        return statistics

    return make


@pytest.fixture(scope="session")
def statistics(
    statistics_of: Make, examples: standard_artifacts.Examples, tmp_path_factory: pytest.TempPathFactory
) -> standard_artifacts.ExampleStatistics:
    """Of the image folder that no test changes."""
    return statistics_of(examples, tmp_path_factory.mktemp("statistics") / "1")


@pytest.fixture(scope="session")
def schema(statistics: standard_artifacts.ExampleStatistics) -> schema_pb2.Schema:
    """The curated schema of the same images."""
    return schemas.inferred([load(statistics, split) for split in statistics.splits])


def load(statistics: standard_artifacts.ExampleStatistics, split: str) -> Any:
    from tfx.components.statistics_gen import stats_artifact_utils

    return stats_artifact_utils.load_statistics(statistics, split).proto()


@pytest.fixture
def validate(execute: Make, artifact_at: Make, schema: schema_pb2.Schema, tmp_path: Path) -> Make:
    """Run ExampleValidator; returns its artifact."""

    def call(
        examples: standard_artifacts.Examples,
        statistics: standard_artifacts.ExampleStatistics,
        *,
        config: PipelineConfig | None = None,
        serving: standard_artifacts.ExampleStatistics | None = None,
        baseline: str = "",
        against: schema_pb2.Schema | None = None,
    ) -> standard_artifacts.ExampleAnomalies:
        number = len(list(tmp_path.iterdir()))
        held = artifact_at(standard_artifacts.Schema, tmp_path / f"schema-{number}")
        schemas.write(Path(held.uri) / "schema.pbtxt", against or schema, header="# by hand\n")
        anomalies = artifact_at(standard_artifacts.ExampleAnomalies, tmp_path / f"anomalies-{number}")
        inputs = {"examples": examples, "statistics": statistics, "schema": held}
        if serving is not None:
            inputs["serving_statistics"] = serving
        gate = data_pipeline.gate_of(config or PipelineConfig())
        execute(
            example_validator.Executor,
            inputs=inputs,
            outputs={"anomalies": anomalies},
            properties={"gate": gate, "baseline": baseline},
        )
        return anomalies

    return call


def test_good_data_passes_its_own_schema(
    validate: Make, examples: standard_artifacts.Examples, statistics: standard_artifacts.ExampleStatistics
) -> None:
    anomalies = validate(examples, statistics)
    assert anomaly_sentences(anomalies) == []
    assert anomalies.get_int_custom_property("passed") == 1
    assert read_findings(anomalies)["compared"] == []
    for split in ("train", "val", "test"):
        assert Path(anomalies.uri, f"Split-{split}", "SchemaDiff.pb").is_file()


def test_unreadable_images_and_copies_are_held_against_the_thresholds() -> None:
    gate = json.loads(data_pipeline.gate_of(PipelineConfig()))
    report: dict[str, Any] = {
        "num_images": {"train": 900, "val": 40, "test": 60},
        "num_corrupt": 10,
        "corrupt": [{"file": f"{n}.png", "reason": "cut off"} for n in range(10)],
        "copies": {"num_leaked": 2, "groups": [{"within_split": False, "files": ["a.png", "b.png"]}]},
    }

    def texts(**changes: Any) -> list[str]:
        return [one["text"] for one in example_validator.intake_findings(report, {**gate, **changes})]

    corrupt, copies = texts()
    assert corrupt.startswith(
        "the images: 10 of 1010 images cannot be read: 0.png (cut off); 1.png (cut off); "
    )
    assert corrupt.endswith("and 5 more; remove them, or set pipeline.on_corrupt to quarantine")
    assert copies == (
        "the images: 2 of the 100 val and test images are copies of images in another split: a.png = b.png; "
        "pipeline.data.max_duplicate_share allows 0.01 of them"
    )
    assert texts(on_corrupt="quarantine", max_duplicate_share=0.02) == []
    (corrupt,) = texts(on_corrupt="quarantine", max_corrupt_share=0.009, max_duplicate_share=0.02)
    assert corrupt.endswith("; pipeline.max_corrupt_share allows 0.009 of them")


def test_what_the_schema_does_not_allow_is_said_in_full(
    validate: Make,
    examples: standard_artifacts.Examples,
    statistics: standard_artifacts.ExampleStatistics,
    schema: schema_pb2.Schema,
) -> None:
    strict = schema_pb2.Schema()
    strict.CopyFrom(schema)
    for feature in strict.feature:
        if feature.name == "image/height":
            feature.int_domain.min = feature.int_domain.max = 9
        if feature.name == "image/brightness":
            feature.float_domain.max = 50
    for domain in strict.string_domain:
        if domain.name == "image/format":
            domain.value[:] = ["jpeg"]
    sentences = anomaly_sentences(validate(examples, statistics, against=strict))
    assert "train split, image/height: expected 9 to 9, found 8 to 8" in sentences
    assert "test split, image/format: expected only jpeg, found png (30)" in sentences
    brightness = next(text for text in sentences if text.startswith("val split, image/brightness"))
    assert re.search(r": expected \d+\.\d+ to 50, found \d+\.?\d* to \d+\.?\d*$", brightness)


@pytest.fixture
def serving_statistics(
    statistics_of: Make, ingest_source: Make, tmp_path: Path, shared_images: Path
) -> Callable[[int], standard_artifacts.ExampleStatistics]:
    """Statistics of a prediction log with the training images, every level divided by a number."""

    def make(divisor: int) -> standard_artifacts.ExampleStatistics:
        folder = tmp_path / f"log-{divisor}"
        log = PredictionLog(folder, 1.0)
        spec = model_pb2.ModelSpec(name="colours")
        for path in sorted((shared_images / "train").rglob("*.png")):
            dimmed = tmp_path / "dimmed.png"
            with Image.open(path) as image:
                image.point(lambda level: level // divisor).save(dimmed)
            inputs = {"image_bytes": np.array([dimmed.read_bytes()], dtype=object)}
            outputs = {"label": np.array([path.parent.name.encode()], dtype=object)}
            log.predict_arrays(spec, inputs, outputs)
        # A request with tensors: it holds no image file.
        log.predict_arrays(spec, {"images": np.zeros((1, 8, 8, 3), np.float32)}, {})
        log.stop()
        examples = ingest_source(sources.look_at_log(str(folder)), tmp_path / f"served-{divisor}")
        report = read_report(examples)
        assert (report["num_images"], report["num_ignored"]) == ({"serving": 48}, 1)
        return statistics_of(examples, tmp_path / f"statistics-{divisor}")

    return make


def test_skew_against_the_servers_own_log(
    validate: Make,
    examples: standard_artifacts.Examples,
    statistics: standard_artifacts.ExampleStatistics,
    serving_statistics: Callable[[int], standard_artifacts.ExampleStatistics],
    execute: Make,
    artifact_at: Make,
    tmp_path: Path,
) -> None:
    same = validate(examples, statistics, serving=serving_statistics(1))
    assert anomaly_sentences(same) == []
    compared = {one["feature"]: one for one in read_findings(same)["compared"]}
    assert {one["kind"] for one in compared.values()} == {"skew"}
    assert compared["image/brightness"]["distance"] == pytest.approx(0, abs=1e-6)
    assert compared["image/class/text"]["distance"] == 0

    dark = serving_statistics(10)
    found = validate(examples, statistics, serving=dark)
    sentences = anomaly_sentences(found)
    brightness = next(text for text in sentences if "image/brightness" in text)
    assert re.match(
        r"train split, image/brightness: expected a Jensen-Shannon divergence of at most 0\.43 from what is "
        r"served \(mean \d\.\d+, .* to .*\), found 1 \(mean \d\d",
        brightness,
    )
    page = artifact_at(DataReportPage, tmp_path / "page")
    execute(
        data_report.Executor,
        inputs={
            "examples": examples,
            "statistics": statistics,
            "anomalies": found,
            "serving_statistics": dark,
        },
        outputs={"report": page},
        properties={"baseline": statistics.uri},
    )
    text = Path(page.uri, "index.html").read_text()
    for part in (
        "nothing is pushed",
        "served",
        "earlier train",
        "too far",
        "No two images have the same bytes",
    ):
        assert part in text


def test_drift_against_earlier_statistics(
    validate: Make,
    examples: standard_artifacts.Examples,
    statistics: standard_artifacts.ExampleStatistics,
    schema: schema_pb2.Schema,
) -> None:
    same = validate(examples, statistics, baseline=statistics.uri)
    assert anomaly_sentences(same) == []
    splits = {one["split"] for one in read_findings(same)["compared"] if one["kind"] == "drift"}
    assert splits == {"train", "test", "val"}
    # A comparator of the schema wins over the recipe, and over what chance allows.
    strict = schema_pb2.Schema()
    strict.CopyFrom(schema)
    for feature in strict.feature:
        if feature.name == "image/brightness":
            feature.drift_comparator.jensen_shannon_divergence.threshold = 0.0625
    config = PipelineConfig(data=DataGate(drift=DriftConfig(jensen_shannon=0.5, l_infinity=0.9)))
    found = validate(examples, statistics, baseline=statistics.uri, against=strict, config=config)
    limits = {
        one["feature"]: one["limit"] for one in read_findings(found)["compared"] if one["split"] == "train"
    }
    assert limits["image/brightness"] == 0.0625
    assert limits["image/sharpness"] == 0.5
    assert limits["image/class/text"] == pytest.approx(0.9)


def test_what_chance_does_is_allowed() -> None:
    """Measured on samples of one distribution: the limit holds in at least 99 of 100 draws."""
    random = np.random.default_rng(0)
    for n, m in ((50, 50), (100, 1000), (2000, 2000)):
        l_infinity, jensen_shannon = by_chance(n, m)
        worst_l, worst_js = [], []
        for _ in range(200):
            p = random.multinomial(n, [0.05] * 20) / n
            q = random.multinomial(m, [0.05] * 20) / m
            worst_l.append(np.abs(p - q).max())
            middle = (p + q) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = [np.where(x > 0, x * np.log2(x / middle), 0).sum() for x in (p, q)]
            worst_js.append(sum(terms) / 2)
        assert np.quantile(worst_l, 0.99) < l_infinity
        assert np.quantile(worst_js, 0.99) < jensen_shannon


def test_the_baseline_is_the_span_before_or_the_last_other_data() -> None:
    def data(number: int, fingerprint: str, span: int = 0) -> Accepted:
        return Accepted(number=number, fingerprint=fingerprint, span=span, statistics=f"s{number}")

    assert baseline_of([], fingerprint="a", span=None) == ""
    assert baseline_of([data(1, "a")], fingerprint="a", span=None) == ""
    assert baseline_of([data(1, "a"), data(2, "b"), data(3, "c")], fingerprint="c", span=None) == "s2"
    spans = [data(1, "a", 1), data(2, "b", 2), data(3, "b'", 2), data(4, "d", 4)]
    assert baseline_of(spans, fingerprint="c", span=3) == "s3"
    assert baseline_of(spans, fingerprint="a", span=1) == ""


def test_a_widened_schema_allows_more_and_says_what(
    schema: schema_pb2.Schema, statistics: standard_artifacts.ExampleStatistics, tmp_path: Path
) -> None:
    found = [load(statistics, split) for split in statistics.splits]
    assert schemas.differences(schema, schemas.widened(schema, found)) == []
    narrow = schema_pb2.Schema()
    narrow.CopyFrom(schema)
    for feature in narrow.feature:
        if feature.name == "image/height":
            feature.int_domain.min = feature.int_domain.max = 10
        if feature.name == "image/class/text":
            feature.unique_constraints.min = feature.unique_constraints.max = 2
            feature.drift_comparator.infinity_norm.threshold = 0.25
    for domain in narrow.string_domain:
        if domain.name == "image/class/text":
            domain.value[:] = ["blue", "red"]
    schemas.write(tmp_path / "a.pbtxt", narrow, header="# ours\n# stays\n")
    read, header = schemas.read(tmp_path / "a.pbtxt")
    assert (read, header) == (narrow, "# ours\n# stays\n")
    wider = schemas.widened(read, found)
    assert sorted(schemas.differences(read, wider)) == [
        "image/class/text: 2 to 2 different values → 2 to 3",
        "image/class/text: also green",
        "image/height: 10 to 10 → 8 to 10",
    ]
    (text,) = [feature for feature in wider.feature if feature.name == "image/class/text"]
    assert text.drift_comparator.infinity_norm.threshold == 0.25


def test_a_file_that_is_no_schema(tmp_path: Path) -> None:
    (tmp_path / "a.pbtxt").write_text("feature { nonsense: 1 }")
    with pytest.raises(PipelineError, match=r"a.pbtxt is no schema \(text form of tensorflow.metadata"):
        schemas.read(tmp_path / "a.pbtxt")


def test_no_prediction_log(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"no prediction log at .*; start the server with --prediction_log="
    ):
        sources.look_at_log(str(tmp_path / "nothing"))
    (tmp_path / "predictions-1.tfrecord.part").write_text("")
    with pytest.raises(PipelineError, match=r"holds no complete file \(\*.tfrecord\) yet"):
        sources.look_at_log(str(tmp_path))


def test_a_changed_threshold_changes_the_validator_and_nothing_before_it() -> None:
    def properties(config: PipelineConfig) -> dict[str, str]:
        source = sources.Source(pattern="x", path="x", kind="folder", fingerprint="f")
        built = data_pipeline.data_components(
            data_pipeline.DataInputs(source=source),
            classes_file="c",
            config=config,
            code=dict.fromkeys(("ImageExampleGen", "ExampleValidator", "DataReport"), "c"),
        )
        return {component.id: str(component.exec_properties) for component in built.all}

    before = properties(PipelineConfig())
    for config in (
        PipelineConfig(max_corrupt_share=0.5),
        PipelineConfig(on_corrupt="quarantine"),
        PipelineConfig(data=DataGate(max_duplicate_share=0.5)),
        PipelineConfig(data=DataGate(drift=DriftConfig(l_infinity=0.5))),
    ):
        after = properties(config)
        assert {name for name in before if before[name] != after[name]} == {"ExampleValidator"}
    # Where images come from is no threshold; what was seen there stands in the source.
    assert properties(PipelineConfig(input=InputConfig(span=3))) == before
