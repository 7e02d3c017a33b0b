"""What each component's outputs say, in a few words, and every reason against a push so far."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from tfx.types.artifact import Artifact

from isthmus.tfx_pipeline import evaluator
from isthmus.tfx_pipeline.anomalies import anomaly_sentences, read_findings
from isthmus.tfx_pipeline.artifacts import Verdict
from isthmus.tfx_pipeline.champion_resolver import HAS_MODEL
from isthmus.tfx_pipeline.data_report import PAGE_FILE
from isthmus.tfx_pipeline.pusher import FRESH, NOT_PUSHED_BECAUSE
from isthmus.tfx_pipeline.registrar import REGISTERED_VERSION

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.runner import Outcome


def told(outcome: Outcome) -> str:
    """One phrase about what a component found; "" for those that only pass things on."""
    teller = _TELLERS.get(outcome.node)
    return teller(outcome.outputs) if teller else ""


def reasons_so_far(outcomes: dict[str, Outcome]) -> list[str]:
    """The reasons of every gate that has ended, in the order of the pipeline."""
    reasons = []
    for node, key, read in (
        ("ExampleValidator", "anomalies", anomaly_sentences),
        ("ParityValidator", "parity", lambda artifact: Verdict.read(artifact).reasons),
        ("Evaluator", "evaluation", evaluator.refusals),
        ("ServerValidator", "blessing", lambda artifact: Verdict.read(artifact).reasons),
    ):
        if node in outcomes:
            reasons += [f"{node}: {text}" for text in read(outcomes[node].outputs[key])]
    if not reasons and "Pusher" in outcomes:
        pushed = outcomes["Pusher"].outputs["pushed_model"]
        reasons = json.loads(pushed.get_string_custom_property(NOT_PUSHED_BECAUSE) or "[]")
    return reasons


def _examples(outputs: dict[str, Artifact]) -> str:
    artifact = outputs["examples"]
    text = f"{artifact.get_int_custom_property('num_images')} images"
    if artifact.span:
        text += f" of span {artifact.span}"
    if num_corrupt := artifact.get_int_custom_property("num_corrupt"):
        text += f", {num_corrupt} unreadable"
    if num_leaked := artifact.get_int_custom_property("num_leaked"):
        text += f", {num_leaked} of val and test are also in another split"
    return text


def _anomalies(outputs: dict[str, Artifact]) -> str:
    findings = read_findings(outputs["anomalies"])
    furthest = max(findings["compared"], key=lambda one: one["distance"] / one["limit"], default=None)
    compared = (
        f", largest {furthest['kind']} {furthest['distance']:.2f} of {furthest['limit']:.2f} "
        f"({furthest['feature']}, {furthest['split']})"
        if furthest
        else ""
    )
    number = len(findings["anomalies"])
    return (
        f"REFUSED: {number} anomal{'y' if number == 1 else 'ies'}{compared}"
        if number
        else f"no anomalies{compared}"
    )


def _model(outputs: dict[str, Artifact]) -> str:
    model = outputs["model"]
    digest = model.get_string_custom_property("saved_model_digest")
    return f"{model.get_string_custom_property('timm_model')}, SavedModel {digest[:12]}"


def _verdict(key: str, outputs: dict[str, Artifact]) -> str:
    verdict = Verdict.read(outputs[key])
    return verdict.summary if verdict.passed else f"REFUSED: {verdict.summary}"


def _baseline(outputs: dict[str, Artifact]) -> str:
    baseline = outputs["baseline"]
    if not baseline.get_int_custom_property(HAS_MODEL):
        return "no champion to compare with"
    return f"champion is version {baseline.get_int_custom_property('version')}"


def _evaluation(outputs: dict[str, Artifact]) -> str:
    found = evaluator.read_evaluation(outputs["evaluation"])
    text = f"accuracy {found.accuracy:.4f} on {found.whole.num_images} images"
    if found.whole.change is not None:
        text += f", {found.whole.change:+.4f} against the champion"
    if found.num_too_small:
        text += f"; {found.num_too_small} of {len(found.slices)} slices are too small to judge"
    return f"REFUSED: {text}" if evaluator.refusals(outputs["evaluation"]) else text


def _pushed(outputs: dict[str, Artifact]) -> str:
    pushed = outputs["pushed_model"]
    if pushed.get_int_custom_property("pushed") != 1:
        return "not pushed"
    version = pushed.get_string_custom_property("pushed_version")
    return (
        f"version {version}"
        if pushed.get_int_custom_property(FRESH)
        else f"version {version} was there already"
    )


def _registered(outputs: dict[str, Artifact]) -> str:
    version = outputs["registration"].get_int_custom_property(REGISTERED_VERSION)
    return f"registered version {version}" if version else "nothing to register"


_TELLERS = {
    "ImageExampleGen": _examples,
    "ServingExampleGen": _examples,
    "ExampleValidator": _anomalies,
    "DataReport": lambda outputs: os.path.join(outputs["report"].uri, PAGE_FILE),
    "BundleImporter": _model,
    "ParityValidator": lambda outputs: _verdict("parity", outputs),
    "ChampionResolver": _baseline,
    "Evaluator": _evaluation,
    "ServerValidator": lambda outputs: _verdict("blessing", outputs),
    "Pusher": _pushed,
    "Registrar": _registered,
}
