"""What a pipeline may be called: here the model's name, on a cluster what is left of it there."""

from __future__ import annotations

import re

from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.package import Cluster

MAX_LENGTH = 63
"""Characters of a pipeline's name that TFX takes. Vertex adds a hyphen and a time (15) for the job, and takes 128."""


def cluster_name(name: str) -> str:
    """A name as Kubeflow and Vertex want it: lower case, digits and hyphens, none of them at an end."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_LENGTH].strip("-")


def check_local_name(name: str) -> None:
    """Refuse a name that TFX would, in a traceback.

    Raises:
        PipelineError: It is too long.
    """
    if len(name) > MAX_LENGTH:
        raise PipelineError(
            f"name {name!r} has {len(name)} characters, and a pipeline's name {MAX_LENGTH} at most; "
            "give another with --name"
        )


def check_cluster_name(name: str, cluster: Cluster) -> None:
    """Refuse a name of which the cluster can make no pipeline's.

    Raises:
        PipelineError: No Latin letter or digit is in it, or Vertex is given one that begins with a digit.
    """
    short = cluster_name(name)
    if not short:
        raise PipelineError(
            f"name {name!r}: the runner {cluster} keeps Latin letters and digits, and there are none in it; "
            "give another with --name"
        )
    if cluster == "vertex" and not short[0].isalpha():
        raise PipelineError(
            f"name {name!r}: Vertex's pipelines begin with a letter, and this one would be {short!r}; "
            "give another with --name"
        )
