"""Which models the pipeline can judge: every source of images has one label per image."""

from __future__ import annotations

from typing import Any

from isthmus.tfx_pipeline.errors import PipelineError


def check_head(manifest: dict[str, Any], *, bundle: str) -> None:
    """Refuse a bundle whose answers are no choice of one class.

    Args:
        manifest: The bundle's manifest.json.
        bundle: Where it is, for the error.

    Raises:
        PipelineError: Its head is another one than `single_label`.
    """
    head = manifest["model"]["head"]
    if head != "single_label":
        raise PipelineError(f"{bundle} is a {head} model; the pipeline's images have one label each")
