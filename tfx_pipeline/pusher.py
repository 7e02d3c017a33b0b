"""Pusher: publishes a model that every gate has passed, to a folder or an object store that a server polls.

TFX's own Pusher copies straight into the version's folder, asks for two blessings only, and pushes the same
model again whenever it runs. Ours asks all gates, lets nobody see half a version (`publishing` says how), and
finds a model that is already there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.pusher import executor as tfx_pusher
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.lineage import signing
from isthmus.tfx_pipeline import evaluator, remote
from isthmus.tfx_pipeline.anomalies import anomaly_sentences
from isthmus.tfx_pipeline.artifacts import BLESSED, ParityReport, Verdict
from isthmus.tfx_pipeline.model_artifact import saved_model_of
from isthmus.tfx_pipeline.publishing import push, pushed_version

NOT_PUSHED_BECAUSE = "not_pushed_because"
"""String property of the PushedModel artifact: a JSON list of sentences."""

FRESH = "fresh"
"""Integer property: 1 when this execution put the model there, 0 when it was there already."""


def refusals(gates: dict[str, types.Artifact]) -> list[str]:
    """Every reason against pushing, each led by the name of the gate.

    Args:
        gates: {"anomalies", "parity", "evaluation", "model_blessing", "infra_blessing": artifact}.
    """
    reasons = [f"ExampleValidator: {text}" for text in anomaly_sentences(gates["anomalies"])]
    reasons += [f"ParityValidator: {text}" for text in Verdict.read(gates["parity"]).reasons]
    reasons += [f"Evaluator: {text}" for text in evaluator.refusals(gates["evaluation"])]
    reasons += [f"ServerValidator: {text}" for text in Verdict.read(gates["infra_blessing"]).reasons]
    if reasons:
        return reasons
    # The sentences explain; the blessings decide.
    if gates["parity"].get_int_custom_property(BLESSED) != 1:
        reasons.append("ParityValidator: the model is not blessed")
    if not model_utils.is_model_blessed(gates["model_blessing"]):
        reasons.append("Evaluator: the model is not blessed")
    if not model_utils.is_infra_validated(gates["infra_blessing"]):
        reasons.append("ServerValidator: the model is not blessed")
    return reasons


def unsigned(saved_model: Path, verification_key: str) -> list[str]:
    """The reason against pushing a SavedModel folder that the key did not sign; nothing without a key."""
    if not verification_key:
        return []
    refusal = signing.refusal(saved_model, Path(verification_key))
    return [f"Signature: {refusal}"] if refusal else []


def _is_signed(place: str, verification_key: str) -> bool:
    """Whether what lies at a place, here or in an object store, needs no signature or has the key's."""
    if not verification_key:
        return True
    with remote.local_tree(place) as folder:
        return not unsigned(folder, verification_key)


class Executor(tfx_pusher.Executor):
    """Asks the gates, then pushes."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Push, or write down why not; the PushedModel artifact has TFX's own properties and two of ours."""
        (pushed,) = output_dict["pushed_model"]
        (model,) = input_dict["model"]
        reasons = refusals({key: artifacts[0] for key, artifacts in input_dict.items() if key != "model"})
        key = exec_properties.get("verification_key") or ""
        reasons += unsigned(saved_model_of(model), key)
        if reasons:
            self._MarkNotPushed(pushed)
            pushed.set_string_custom_property(NOT_PUSHED_BECAUSE, json.dumps(reasons, ensure_ascii=False))
            return
        saved_model, base = saved_model_of(model), exec_properties["base_directory"]
        version = pushed_version(base, model.get_string_custom_property("saved_model_digest"))
        if version is not None and not _is_signed(remote.join(base, str(version)), key):
            # The same content lies there with no signature, or with another's: this copy goes beside it.
            version = None
        pushed.set_int_custom_property(FRESH, int(version is None))
        if version is None:
            version = push(saved_model, base)
        self._MarkPushed(
            pushed, pushed_destination=remote.join(base, str(version)), pushed_version=str(version)
        )


class PusherSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Pusher."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "base_directory": ExecutionParameter(type=str),
        "verification_key": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=standard_artifacts.Model),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "parity": ChannelParameter(type=ParityReport),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
        "infra_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
    }
    OUTPUTS = {"pushed_model": ChannelParameter(type=standard_artifacts.PushedModel)}  # noqa: RUF012


class Pusher(base_component.BaseComponent):
    """Publishes to `<base_directory>/<version>/`. No gate is optional."""

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        model: types.BaseChannel,
        anomalies: types.BaseChannel,
        parity: types.BaseChannel,
        evaluation: types.BaseChannel,
        model_blessing: types.BaseChannel,
        infra_blessing: types.BaseChannel,
        base_directory: str,
        code: str,
        verification_key: str = "",
    ) -> None:
        """Describe one run.

        `base_directory` is the folder that a server polls; a model that `verification_key` did not sign is not
        pushed ("": signatures are not asked for).
        """
        super().__init__(
            PusherSpec(
                model=model,
                anomalies=anomalies,
                parity=parity,
                evaluation=evaluation,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                base_directory=base_directory,
                verification_key=verification_key,
                code=code,
                pushed_model=types.Channel(type=standard_artifacts.PushedModel),
            )
        )
