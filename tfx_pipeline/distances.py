"""Comparing the distributions of two sets of images: which limits hold, and what chance alone would do.

TFDV measures, by the comparators in a schema: the L-infinity distance of words (the largest difference of one value's
share) and the Jensen-Shannon divergence of numbers' histograms (0 equal, 1 nothing in common).
"""

from __future__ import annotations

import math
from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

# Two histograms of ten buckets each have at most this many between them.
_BUCKETS = 20


def by_chance(num_images: int, other: int) -> tuple[float, float]:
    """How far apart two samples of one distribution may be by chance.

    Args:
        num_images: Of the one sample.
        other: Of the other.

    Returns:
        (L-infinity: three standard deviations of the difference of two shares of one half;
        Jensen-Shannon: three times its expected value, (k - 1) ÷ (8 ln 2) · (1/n + 1/m) for k buckets).
    """
    noise = 1 / max(num_images, 1) + 1 / max(other, 1)
    return 3 * math.sqrt(0.25 * noise), 3 * (_BUCKETS - 1) / (8 * math.log(2)) * noise


def with_comparators(
    schema: schema_pb2.Schema,
    *,
    kind: str,
    limits: dict[str, Any],
    num_images: int,
    other: int,
) -> schema_pb2.Schema:
    """A copy of a schema in which every feature has a comparator.

    Args:
        schema: The schema; comparators that it has stay as they are.
        kind: `drift` or `skew`.
        limits: `l_infinity` and `jensen_shannon`.
        num_images: Images on one side.
        other: Images on the other.
    """
    chance = by_chance(num_images, other)
    l_infinity = max(limits["l_infinity"], chance[0])
    jensen_shannon = max(limits["jensen_shannon"], chance[1])
    copy = schema_pb2.Schema()
    copy.CopyFrom(schema)
    for feature in copy.feature:
        if feature.HasField(f"{kind}_comparator"):
            continue
        comparator = getattr(feature, f"{kind}_comparator")
        # A distance is at most 1: a larger limit is none.
        if feature.type == schema_pb2.BYTES and l_infinity < 1:
            comparator.infinity_norm.threshold = l_infinity
        elif feature.type in (schema_pb2.INT, schema_pb2.FLOAT) and jensen_shannon < 1:
            comparator.jensen_shannon_divergence.threshold = jensen_shannon
    return copy


def num_images_of(statistics: statistics_pb2.DatasetFeatureStatisticsList) -> int:
    """Images behind some statistics."""
    return int(statistics.datasets[0].num_examples)


def comparable(schema: schema_pb2.Schema) -> schema_pb2.Schema:
    """A copy that compares the names of classes as words, and not their index, which means nothing as a number.

    Classes that are called 0, 1, 2 are words that TFDV's inference takes for numbers.
    """
    copy = schema_pb2.Schema()
    copy.CopyFrom(schema)
    for feature in copy.feature:
        if feature.name == "image/class/label":
            feature.ClearField("drift_comparator")
            feature.ClearField("skew_comparator")
        if feature.type == schema_pb2.BYTES and feature.HasField("int_domain"):
            feature.ClearField("int_domain")
    return copy
