"""The curated schema: what the images of a recipe are like, in a text file that a person edits and Git keeps.

An inferred schema knows what is usual only from the data that it is to judge, and no ranges at all. The curated one is
written once from data that a person has looked at: the classes, each of which must have images; formats; and for every
number the range that was found, with a margin. From then on the file decides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage.files import write_text
from isthmus.tfx_pipeline import sources
from isthmus.tfx_pipeline.beam_options import beam_args, start_early
from isthmus.tfx_pipeline.code import code_keys
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.imports import torch_kept_out
from isthmus.tfx_pipeline.run import classes_file, clear_stale, execute, only_run

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

logger = logging.getLogger(__name__)

CLASS = "image/class/text"

_MOST_CLASSES = 1_000_000
_HEADER = """\
# What the images of this recipe are like: isthmus pipeline refuses to push when they are not. Edit it freely; these
# first lines stay, other comments are lost when `isthmus pipeline schema --update` widens it.
# Text form of tensorflow.metadata.v0.Schema; a drift_comparator or skew_comparator here wins over the recipe's limits.
"""
#: {feature: (share of the found range that is added on both sides, smallest and largest value there can be)}.
_MARGINS = {
    "image/brightness": (0.25, 0.0, 255.0),
    "image/sharpness": (1.0, 0.0, float("inf")),
    "image/bytes": (0.5, 1.0, float("inf")),
    **{f"image/mean/{channel}": (0.25, 0.0, 255.0) for channel in ("red", "green", "blue")},
    **{f"image/std/{channel}": (0.25, 0.0, 127.5) for channel in ("red", "green", "blue")},
}


@dataclass(kw_only=True)
class SchemaResult:
    """What `curate` did."""

    path: Path
    """The file."""

    written: bool
    """False where it was left as it is."""

    changes: list[str]
    """What the data has that the file did not allow, a line each; empty for a new file."""


def curate(
    *,
    name: str,
    data_root: Path | None,
    labels: list[str],
    config: PipelineConfig,
    home: Path,
    path: Path,
    update: bool,
) -> SchemaResult:
    """Write the schema of a recipe's images, or widen the one that there is so that it allows them.

    ImageExampleGen and StatisticsGen run as in the pipeline, whose next run takes them from the cache.

    Args:
        name: Registered model name.
        data_root: Folder that training prepared; `config.input.path` wins over it.
        labels: The classes, in the order of the model's outputs.
        config: The recipe's `pipeline:` section.
        home: Home folder.
        path: The file.
        update: Whether an existing file may be changed.

    Raises:
        PipelineError: The images or the existing file cannot be used.
    """
    args = beam_args(workers=config.beam_workers, further=config.beam_args)
    source = sources.look(config.input, data_root=data_root, labels=labels, beam_args=args)
    root = home.absolute() / "pipeline" / name
    with only_run(root):
        start_early(args)
        logger.info("loading TFX")
        with torch_kept_out():
            from tfx.components.statistics_gen import stats_artifact_utils
            from tfx.orchestration.pipeline import Pipeline

            from isthmus.tfx_pipeline import data_pipeline
            from isthmus.tfx_pipeline.pipeline import local_metadata
            from isthmus.tfx_pipeline.runner import ReportingRunner
        connection = local_metadata(home.absolute() / "metadata.db")
        clear_stale(root, connection, name)
        examples, statistics = data_pipeline.intake(
            source, classes_file=classes_file(labels, source, root), code=code_keys()
        )
        built = Pipeline(
            pipeline_name=name,
            pipeline_root=str(root),
            metadata_connection_config=connection,
            enable_cache=True,
            beam_pipeline_args=args,
            components=[examples, statistics],
        )
        artifact = execute(ReportingRunner, built, [])["StatisticsGen"].outputs["statistics"]
        found = [stats_artifact_utils.load_statistics(artifact, split).proto() for split in artifact.splits]
    if not path.exists():
        write(path, inferred(found), header=_HEADER)
        logger.info("wrote %s; look through it, and name it in the recipe as pipeline.schema", path)
        return SchemaResult(path=path, written=True, changes=[])
    schema, header = read(path)
    wider = widened(schema, found)
    changes = differences(schema, wider)
    if changes and update:
        write(path, wider, header=header)
    for change in changes:
        logger.info("%s %s", "now allowed:" if update else "not allowed:", change)
    if not changes:
        logger.info("%s allows all of these images", path)
    elif not update:
        logger.info("%s is left as it is; --update widens it", path)
    return SchemaResult(path=path, written=bool(changes and update), changes=changes)


def inferred(found: Sequence[statistics_pb2.DatasetFeatureStatisticsList]) -> schema_pb2.Schema:
    """A schema that allows what was found, with margins.

    Args:
        found: Statistics of each split.
    """
    import tensorflow_data_validation as tfdv

    schema = tfdv.infer_schema(found[0], infer_feature_shape=False, max_string_domain_size=_MOST_CLASSES)
    for feature in schema.feature:
        words = _words(found[0], feature.name)
        if feature.HasField("int_domain") and words:
            # Classes that are called 0, 1, 2: TFDV takes such words for numbers.
            feature.ClearField("int_domain")
            feature.domain = feature.name
            schema.string_domain.add(name=feature.name, value=sorted(words))
    return widened(schema, found)


def widened(
    schema: schema_pb2.Schema, found: Sequence[statistics_pb2.DatasetFeatureStatisticsList]
) -> schema_pb2.Schema:
    """A copy that also allows what was found. What it allowed before, it still allows; comparators stay.

    Args:
        schema: The schema.
        found: Statistics of each split.
    """
    import tensorflow_data_validation as tfdv
    from tensorflow_metadata.proto.v0 import schema_pb2

    wider = schema_pb2.Schema()
    wider.CopyFrom(schema)
    for feature in wider.feature:
        _widen_range(feature, found)
    for statistics in found:
        wider = tfdv.update_schema(wider, statistics, max_string_domain_size=_MOST_CLASSES)
    for feature in wider.feature:
        # A feature that update_schema has just added.
        _widen_range(feature, found)
        if feature.name == CLASS:
            numbers = [len(_words(statistics, CLASS)) for statistics in found]
            known = feature.HasField("unique_constraints")
            low = min([*numbers, *([feature.unique_constraints.min] if known else [])])
            high = max([*numbers, *([feature.unique_constraints.max] if known else [])])
            feature.unique_constraints.min, feature.unique_constraints.max = low, high
    return wider


def _widen_range(feature: Any, found: Sequence[Any]) -> None:
    """Give a feature of numbers a range that holds what was found; one that does already stays."""
    from tensorflow_metadata.proto.v0 import schema_pb2

    from isthmus.tfx_pipeline.anomalies import feature_statistics

    if feature.type not in (schema_pb2.INT, schema_pb2.FLOAT):
        return
    numbers = [one.num_stats for one in (feature_statistics(each, feature.name) for each in found) if one]
    if not numbers:
        return
    low, high = min(one.min for one in numbers), max(one.max for one in numbers)
    is_int = feature.type == schema_pb2.INT
    domain = feature.int_domain if is_int else feature.float_domain
    known = feature.HasField("int_domain" if is_int else "float_domain")
    if known and domain.min <= low and high <= domain.max:
        return
    share, least, most = _MARGINS.get(feature.name, (0.0, float("-inf"), float("inf")))
    margin = share * (high - low)
    low, high = max(low - margin, least), min(high + margin, most)
    if known:
        low, high = min(low, domain.min), max(high, domain.max)
    domain.min, domain.max = (int(low), int(high)) if is_int else (_rounded(low, -1), _rounded(high, 1))


def _rounded(value: float, direction: int) -> float:
    """Four digits, away from the range; a person reads these numbers."""
    import math

    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{(math.ceil if direction > 0 else math.floor)(value / unit) * unit:.4g}")


def differences(before: schema_pb2.Schema, after: schema_pb2.Schema) -> list[str]:
    """What the one allows and the other does not, a line per feature."""
    from isthmus.tfx_pipeline.anomalies import words_allowed

    old = {feature.name: feature for feature in before.feature}
    lines = []
    for feature in after.feature:
        known = old.get(feature.name)
        if known is None:
            lines.append(f"{feature.name}: not in the schema")
            continue
        for domain in ("int_domain", "float_domain"):
            one, other = getattr(known, domain), getattr(feature, domain)
            if (one.min, one.max) != (other.min, other.max):
                lines.append(f"{feature.name}: {one.min:g} to {one.max:g} → {other.min:g} to {other.max:g}")
        added = sorted(set(words_allowed(after, feature)) - set(words_allowed(before, known)))
        if added:
            lines.append(f"{feature.name}: also {', '.join(added)}")
        limits = known.unique_constraints, feature.unique_constraints
        if (limits[0].min, limits[0].max) != (limits[1].min, limits[1].max):
            was, now = (f"{limit.min} to {limit.max}" for limit in limits)
            lines.append(f"{feature.name}: {was} different values → {now}")
        if known.presence != feature.presence or known.type != feature.type:
            lines.append(f"{feature.name}: another type, or not in every image")
    return lines


def read(path: Path) -> tuple[schema_pb2.Schema, str]:
    """(the schema, the comment lines at its head) of a file.

    Raises:
        PipelineError: It is no schema.
    """
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        text = path.read_text(encoding="utf-8")
        schema = text_format.Parse(text, schema_pb2.Schema())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise PipelineError(
            f"{path} is no schema (text form of tensorflow.metadata.v0.Schema): {error}"
        ) from error
    lines = text.splitlines(keepends=True)
    number = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return schema, "".join(lines[:number])


def write(path: Path, schema: schema_pb2.Schema, *, header: str) -> None:
    """Write a schema's text, in one step."""
    from google.protobuf import text_format

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, header + text_format.MessageToString(schema, as_utf8=True))


def _words(statistics: Any, name: str) -> dict[str, float]:
    from isthmus.tfx_pipeline.anomalies import feature_statistics, words

    feature = feature_statistics(statistics, name)
    return {} if feature is None else words(feature)
