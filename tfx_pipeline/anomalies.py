"""What ExampleValidator found, in sentences: the split, the feature, what was expected and what is there."""

from __future__ import annotations

import os

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.dsl.io import fileio
from tfx.types.artifact_utils import get_split_uri

_FILE = "SchemaDiff.pb"


def anomaly_sentences(artifact: types.Artifact) -> list[str]:
    """One sentence per anomaly; empty when the data is as the schema says.

    Args:
        artifact: ExampleValidator's output.
    """
    sentences = []
    for split in artifact.splits:
        with fileio.open(os.path.join(get_split_uri([artifact], split), _FILE), "rb") as file:
            anomalies = anomalies_pb2.Anomalies.FromString(file.read())
        found = [(name, info) for name, info in sorted(anomalies.anomaly_info.items())]
        if anomalies.HasField("dataset_anomaly_info"):
            found.append(("the data set", anomalies.dataset_anomaly_info))
        sentences += [f"{split} split, {name}: {_text(info)}" for name, info in found]
    return sentences


def _text(info: anomalies_pb2.AnomalyInfo) -> str:
    short, long = info.short_description.rstrip("."), info.description.rstrip(". ")
    return f"{short} ({long})" if long and long != short else short
