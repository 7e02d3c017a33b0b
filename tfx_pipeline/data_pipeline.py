"""The data half of the pipeline as a value: from images to the verdict on them. Nothing runs here.

source → ImageExampleGen → StatisticsGen ─┬→ SchemaGen (or the curated schema) ─┐
prediction log → ServingExampleGen → ServingStatisticsGen ──────────────────────┼→ ExampleValidator → DataReport
statistics of earlier data ─────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import tensorflow_data_validation as tfdv
from tfx.components import SchemaGen, StatisticsGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.data_report import DataReport
from isthmus.tfx_pipeline.example_validator import ExampleValidator
from isthmus.tfx_pipeline.image_example_gen import ImageExampleGen
from isthmus.tfx_pipeline.image_folder import SPLITS
from isthmus.tfx_pipeline.image_items import SERVING
from isthmus.tfx_pipeline.sources import Source

#: What statistics look at: everything but the image itself and its unique name.
DESCRIBED_FEATURES = (
    "image/class/text",
    "image/class/label",
    "image/format",
    "image/height",
    "image/width",
    "image/aspect",
    "image/channels",
    "image/bytes",
    "image/brightness",
    "image/sharpness",
    "image/mean/red",
    "image/mean/green",
    "image/mean/blue",
    "image/std/red",
    "image/std/green",
    "image/std/blue",
)


@dataclass(kw_only=True, frozen=True)
class DataInputs:
    """What the data half reads."""

    source: Source
    """The images."""

    schema_file: str | None = None
    """A curated schema; its path must change with its content. None: inferred from `train`."""

    serving: Source | None = None
    """A prediction log. None: nothing is compared with what is served."""

    baseline: str = ""
    """Folder of the statistics to compare with; "" for none."""


@dataclass(kw_only=True, frozen=True)
class DataComponents:
    """The components that others read from, and all of them in an order that runs."""

    examples: ImageExampleGen
    statistics: StatisticsGen
    schema: Any
    validator: ExampleValidator
    all: list[Any]


def intake(
    source: Source, *, classes_file: str, code: dict[str, str]
) -> tuple[ImageExampleGen, StatisticsGen]:
    """Images to Examples and statistics.

    Args:
        source: The images, or a prediction log.
        classes_file: The model's labels (see `classes`).
        code: {component: digest of its code}.
    """
    is_log = source.kind == "prediction_log"
    examples = ImageExampleGen(
        input_base=source.pattern,
        source=source.properties(),
        splits=[SERVING] if is_log else list(SPLITS),
        classes_file=classes_file,
        fingerprint=source.fingerprint,
        code=code["ImageExampleGen"],
    )
    statistics = StatisticsGen(
        examples=examples.outputs["examples"],
        stats_options=tfdv.StatsOptions(feature_allowlist=list(DESCRIBED_FEATURES)),
    )
    return examples, statistics.with_id("ServingStatisticsGen") if is_log else statistics


def data_components(
    inputs: DataInputs, *, classes_file: str, config: PipelineConfig, code: dict[str, str]
) -> DataComponents:
    """Build the data half.

    Args:
        inputs: What to read.
        classes_file: The model's labels (see `classes`).
        config: The recipe's `pipeline:` section.
        code: {component: digest of its code}.
    """
    examples, statistics = intake(inputs.source, classes_file=classes_file, code=code)
    served = (
        intake(inputs.serving, classes_file=classes_file, code=code) if inputs.serving is not None else ()
    )
    serving_statistics = served[1].outputs["statistics"] if served else None
    if inputs.schema_file is None:
        schema = SchemaGen(
            statistics=statistics.outputs["statistics"],
            infer_feature_shape=False,
            exclude_splits=[split for split in SPLITS if split != "train"],
        )
    else:
        schema = ImportSchemaGen(schema_file=inputs.schema_file)
    validator = ExampleValidator(
        examples=examples.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        serving_statistics=serving_statistics,
        gate=gate_of(config),
        baseline=inputs.baseline,
        code=code["ExampleValidator"],
    )
    report = DataReport(
        examples=examples.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        anomalies=validator.outputs["anomalies"],
        serving_statistics=serving_statistics,
        baseline=inputs.baseline,
        code=code["DataReport"],
    )
    return DataComponents(
        examples=examples,
        statistics=statistics,
        schema=schema,
        validator=validator,
        all=[examples, statistics, schema, *served, validator, report],
    )


def gate_of(config: PipelineConfig) -> str:
    """ExampleValidator's thresholds, as JSON: nothing of the configuration that it does not look at."""
    gate = asdict(config.data)
    return canonical_json(
        {
            "on_corrupt": config.on_corrupt,
            "max_corrupt_share": config.max_corrupt_share,
            "max_duplicate_share": gate["max_duplicate_share"],
            **{
                kind: {name: gate[kind][name] for name in ("l_infinity", "jensen_shannon")}
                for kind in ("drift", "skew")
            },
        }
    )
