"""What is wrong with the data, in sentences: the split, the feature, what was expected and what is there.

TFDV finds the anomalies; its texts leave out one half or the other ("Unexpectedly low values: 4.83<60"), so the
sentences are made here from the schema and the statistics that it compared.
"""

from __future__ import annotations

import json
import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx import types
from tfx.dsl.io import fileio

FINDINGS_FILE = "findings.json"

_TYPE = anomalies_pb2.AnomalyInfo.Type
_RANGE = {
    _TYPE.FLOAT_TYPE_SMALL_FLOAT,
    _TYPE.FLOAT_TYPE_BIG_FLOAT,
    _TYPE.INT_TYPE_SMALL_INT,
    _TYPE.INT_TYPE_BIG_INT,
}
_WORDS = {_TYPE.ENUM_TYPE_UNEXPECTED_STRING_VALUES}
_MOST_WORDS = 5


def anomaly_sentences(artifact: types.Artifact) -> list[str]:
    """One sentence per anomaly; empty when the data is as it should be.

    Args:
        artifact: ExampleValidator's output.
    """
    return [finding["text"] for finding in read_findings(artifact)["anomalies"]]


def read_findings(artifact: types.Artifact) -> dict[str, Any]:
    """Everything that ExampleValidator wrote down: `anomalies` and what was `compared` with what."""
    with fileio.open(os.path.join(artifact.uri, FINDINGS_FILE), "r") as file:
        findings: dict[str, Any] = json.loads(file.read())
    return findings


def finding(where: str, feature: str, expected: str, found: str) -> dict[str, str]:
    """One anomaly as findings.json has it."""
    text = (
        f"{where}, {feature}: expected {expected}, found {found}"
        if feature
        else f"{where}: {found}; {expected}"
    )
    return {"where": where, "feature": feature, "expected": expected, "found": found, "text": text}


def explained(
    split: str,
    anomalies: anomalies_pb2.Anomalies,
    *,
    schema: schema_pb2.Schema,
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
    others: dict[str, statistics_pb2.DatasetFeatureStatisticsList],
) -> list[dict[str, str]]:
    """TFDV's anomalies of one split, each said in full.

    Args:
        split: Its name.
        anomalies: What TFDV found.
        schema: What it held the statistics against.
        statistics: Of the split.
        others: {"drift" or "skew": the statistics that it compared them with}.
    """
    found = []
    for name, info in sorted(anomalies.anomaly_info.items()):
        for reason in info.reason:
            expected, there = _explain(name, reason, schema=schema, statistics=statistics, others=others)
            one = finding(f"{split} split", name, expected, there)
            if one not in found:
                found.append(one)
    if anomalies.HasField("dataset_anomaly_info"):
        info = anomalies.dataset_anomaly_info
        found.append(
            finding(f"{split} split", "the data set", "what the schema says", info.description.rstrip(". "))
        )
    return found


def _explain(
    name: str,
    reason: Any,
    *,
    schema: schema_pb2.Schema,
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
    others: dict[str, statistics_pb2.DatasetFeatureStatisticsList],
) -> tuple[str, str]:
    feature = next((each for each in schema.feature if each.name == name), None)
    here = feature_statistics(statistics, name)
    if feature is not None and here is not None:
        if reason.type in _RANGE:
            domain = feature.float_domain if feature.HasField("float_domain") else feature.int_domain
            return f"{domain.min:g} to {domain.max:g}", f"{here.num_stats.min:g} to {here.num_stats.max:g}"
        if reason.type in _WORDS:
            allowed = words_allowed(schema, feature)
            strange = {word: count for word, count in words(here).items() if word not in allowed}
            return f"only {_some(allowed)}", _some(
                [f"{word} ({count:.0f})" for word, count in strange.items()]
            )
        if reason.type == _TYPE.FEATURE_TYPE_LOW_UNIQUE and (allowed := words_allowed(schema, feature)):
            gone = [word for word in allowed if word not in words(here)]
            return f"all of {_some(allowed)}", f"no image of {_some(gone)}"
        if reason.type == _TYPE.COMPARATOR_L_INFTY_HIGH:
            return _explain_l_infinity(feature, reason, here, others)
        if reason.type == _TYPE.COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH:
            return _explain_jensen_shannon(feature, reason, here, others)
    return "what the schema says", f"{reason.short_description} ({reason.description.rstrip('. ')})"


def _explain_l_infinity(feature: Any, reason: Any, here: Any, others: dict[str, Any]) -> tuple[str, str]:
    kind = _kind(reason)
    limit = getattr(feature, f"{kind}_comparator").infinity_norm.threshold
    there = feature_statistics(others[kind], feature.name)
    shares, before = _shares(words(here)), _shares(words(there))
    word = max(sorted({*shares, *before}), key=lambda word: abs(shares.get(word, 0) - before.get(word, 0)))
    return (
        f"every share within {limit:.2g} of {_OTHERS[kind]} (L-infinity)",
        f"{word} is {shares.get(word, 0):.1%} here and {before.get(word, 0):.1%} there",
    )


def _explain_jensen_shannon(feature: Any, reason: Any, here: Any, others: dict[str, Any]) -> tuple[str, str]:
    kind = _kind(reason)
    limit = getattr(feature, f"{kind}_comparator").jensen_shannon_divergence.threshold
    there = feature_statistics(others[kind], feature.name)
    value = reason.description.split(" is ")[-1].split(" ")[0]
    assert there is not None, "TFDV compared it"
    one, other = here.num_stats, there.num_stats
    return (
        f"a Jensen-Shannon divergence of at most {limit:.2g} from {_OTHERS[kind]} "
        f"(mean {other.mean:.4g}, {other.min:.4g} to {other.max:.4g})",
        f"{float(value):.2g} (mean {one.mean:.4g}, {one.min:.4g} to {one.max:.4g})",
    )


_OTHERS = {"drift": "the earlier data", "skew": "what is served"}


def _kind(reason: Any) -> str:
    return "drift" if "previous" in reason.description else "skew"


def feature_statistics(statistics: statistics_pb2.DatasetFeatureStatisticsList, name: str) -> Any | None:
    """The statistics of one feature, or None."""
    return next((each for each in statistics.datasets[0].features if list(each.path.step) == [name]), None)


def words(feature: Any) -> dict[str, float]:
    """{value: number of images} of a feature of words, the commonest first."""
    return {bucket.label: bucket.sample_count for bucket in feature.string_stats.rank_histogram.buckets}


def words_allowed(schema: schema_pb2.Schema, feature: Any) -> list[str]:
    """The values that a schema allows a feature of words; empty where it says nothing."""
    if feature.HasField("string_domain"):
        return list(feature.string_domain.value)
    return next((list(each.value) for each in schema.string_domain if each.name == feature.domain), [])


def _shares(counts: dict[str, float]) -> dict[str, float]:
    total = sum(counts.values()) or 1
    return {word: count / total for word, count in counts.items()}


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_WORDS
    return ", ".join(names[:_MOST_WORDS]) + (f" and {rest} more" if rest > 0 else "")
