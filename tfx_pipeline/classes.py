"""The model's classes as a file.

A list of 21,841 names is no parameter: on a cluster the parameters of a task are one argument of its command, which
Linux limits to 128 KiB. The file's place holds its digest, so that the cache sees a change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from isthmus.lineage.files import canonical_json

CLASSES_FILE = "classes.json"


def content(labels: Sequence[str], class_map: Mapping[str, int] | None = None) -> bytes:
    """The file's bytes.

    Args:
        labels: The model's labels, in the order of its outputs.
        class_map: {name in the source: index}, where the source calls classes otherwise.
    """
    return canonical_json({"labels": list(labels), "class_map": dict(class_map or {})}).encode()


def read(path: str) -> tuple[list[str], dict[str, int]]:
    """(labels, class map) of a file, wherever Beam's file systems find it."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as file:
        found = json.loads(file.read())
    return found["labels"], found["class_map"]
