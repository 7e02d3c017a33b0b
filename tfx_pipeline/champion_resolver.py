"""ChampionResolver: the registry's current champion as the Evaluator's baseline, or none.

TFX's own resolver knows only the last model that this pipeline blessed. What must not get worse is what serves:
the champion of the registry, who may have come from another pipeline or been brought back by a rollback.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

from isthmus.lineage.models import read_manifest
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.model_artifact import manifest_of
from isthmus.tfx_pipeline.registered_model import find_saved_model

HAS_MODEL = "has_model"
"""Integer property of the baseline artifact: 0 when there is no champion to compare with."""


def _check_labels(candidate: dict[str, Any], champion: dict[str, Any] | None, version: int) -> None:
    """Refuse to compare models whose outputs mean different classes: the champion would look worse than it is."""
    if champion is None or champion["model"]["labels"] == candidate["model"]["labels"]:
        return
    theirs, ours = set(champion["model"]["labels"]), set(candidate["model"]["labels"])
    only = ", ".join(sorted(theirs ^ ours)[:5]) or "the same ones in another order"
    raise PipelineError(
        f"the champion, version {version}, answers with other classes than this model ({only}), so the two cannot "
        "be compared; give models with the new classes a name of their own"
    )


class Executor(base_executor.BaseExecutor):
    """Asks the registry and copies the champion's SavedModel into the artifact."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write the baseline; property `has_model` is 0 when nobody is champion, or the candidate itself is.

        Raises:
            PipelineError: The champion's SavedModel is nowhere to be found.
            LineageError: The registry cannot be reached.
        """
        from isthmus.lineage import registry, tracking

        (baseline,) = output_dict["baseline"]
        (candidate,) = input_dict["model"]
        tracking.connect(Path(exec_properties["home"]), exec_properties["tracking_uri"] or None)
        champion = registry.champion(exec_properties["name"])
        digest = candidate.get_string_custom_property("saved_model_digest")
        if champion is None or champion.saved_model_digest == digest:
            baseline.set_int_custom_property(HAS_MODEL, 0)
            return
        with tempfile.TemporaryDirectory(prefix="isthmus-champion-") as scratch:
            try:
                saved_model = find_saved_model(champion, Path(scratch))
            except PipelineError as error:
                raise PipelineError(f"the champion is to be compared with, and {error}") from error
            _check_labels(manifest_of(candidate), read_manifest(saved_model), champion.version)
            io_utils.copy_dir(str(saved_model), path_utils.serving_model_dir(baseline.uri))
        baseline.set_int_custom_property(HAS_MODEL, 1)
        baseline.set_int_custom_property("version", champion.version)
        baseline.set_string_custom_property("saved_model_digest", champion.saved_model_digest or "")


class ChampionResolverSpec(ComponentSpec):
    """Inputs, outputs and parameters of ChampionResolver."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "name": ExecutionParameter(type=str),
        "home": ExecutionParameter(type=str),
        "tracking_uri": ExecutionParameter(type=str),
        "champion": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012
    OUTPUTS = {"baseline": ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012


class ChampionResolver(base_component.BaseComponent):
    """Finds what the candidate has to be at least as good as."""

    SPEC_CLASS = ChampionResolverSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self, *, model: types.BaseChannel, name: str, home: str, tracking_uri: str, champion: str, code: str
    ) -> None:
        """Describe one run.

        Args:
            model: The candidate; a champion of the same content is no baseline.
            name: Registered model name.
            home: The home folder, where the registry is unless `tracking_uri` says otherwise.
            tracking_uri: The MLflow store, or "".
            champion: Digest of the champion when the run was started, or ""; only the cache looks at it.
            code: Digest of this package's code; for the cache.
        """
        super().__init__(
            ChampionResolverSpec(
                model=model,
                name=name,
                home=home,
                tracking_uri=tracking_uri,
                champion=champion,
                code=code,
                baseline=types.Channel(type=standard_artifacts.Model),
            )
        )
