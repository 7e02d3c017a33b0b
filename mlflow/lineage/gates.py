"""The gates before a promotion: every hash, verdict and approval again, as functions of a registered version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from isthmus.lineage import signing
from isthmus.lineage.config import RegistryConfig, SigningConfig
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import MANIFEST_COPIES, OUTSIDE_DIGEST, broken_files, read_json, sha256_file
from isthmus.lineage.models import manifest_at
from isthmus.lineage.parity_limits import loose_limits, stage_holds
from isthmus.lineage.places import local_copy
from isthmus.lineage.versions import Version


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one gate says about a candidate."""

    gate: str
    passed: bool
    text: str


def check(
    candidate: Version,
    *,
    config: RegistryConfig,
    current: Version | None = None,
    approve_by: str | None = None,
    verification_key: Path | None = None,
) -> list[Verdict]:
    """Every gate before a promotion, in order. A gate that cannot run has failed."""
    manifest, bundle_verdict = _check_bundle(candidate)
    return [
        bundle_verdict,
        check_pushed(candidate),
        check_signature(candidate, verification_key),
        _check_parity(manifest),
        _check_overrides(candidate, manifest),
        _check_source(candidate, config),
        _check_comparison(candidate, current, config),
        _check_approval(config, approve_by),
    ]


def _check_bundle(candidate: Version) -> tuple[dict[str, Any] | None, Verdict]:
    def verdict(text: str, *, passed: bool = False) -> Verdict:
        return Verdict(gate="bundle", passed=passed, text=text)

    place = candidate.bundle_place
    if place is None:
        return None, verdict("the bundle (none recorded) is not there to be checked")
    try:
        with local_copy(place) as bundle:
            if not (bundle / "manifest.json").is_file():
                return None, verdict(f"the bundle {place} is not there to be checked")
            if sha256_file(bundle / "manifest.json") != candidate.tag("manifest_sha256"):
                return None, verdict(f"{place}/manifest.json is not the one that was registered")
            manifest = read_json(bundle / "manifest.json")
            copies = [f"saved_model/{copy}" for copy in OUTSIDE_DIGEST]
            broken = broken_files(bundle, manifest["files"], exclude=["manifest.json", *copies])
            broken += _broken_copies(bundle / "saved_model", candidate)
    except LineageError as error:
        return None, verdict(str(error))
    if broken:
        return manifest, verdict(f"{place}: {'; '.join(broken)}")
    return manifest, verdict(f"every file of {place} has its recorded hash", passed=True)


def _broken_copies(saved_model: Path, candidate: Version) -> list[str]:
    wanted = candidate.tag("manifest_copy_sha256")
    return [
        f"{copy} was changed or is missing"
        for copy in MANIFEST_COPIES
        if not (saved_model / copy).is_file() or sha256_file(saved_model / copy) != wanted
    ]


def check_pushed(candidate: Version) -> Verdict:
    """Whether the folder that serves holds exactly the SavedModel that was registered; needs no bundle."""

    def verdict(text: str, *, passed: bool = False) -> Verdict:
        return Verdict(gate="pushed version", passed=passed, text=text)

    place = candidate.pushed_place
    if place is None:
        return verdict("it was never pushed; run the pipeline")
    try:
        with local_copy(place) as pushed:
            if not pushed.is_dir():
                return verdict(f"{place} is not there")
            broken = _broken_copies(pushed, candidate)
            if not broken:
                # The copy is the registered one, so its table of files can be believed.
                broken = broken_files(
                    pushed, saved_model_table(read_json(pushed / MANIFEST_COPIES[0])), exclude=OUTSIDE_DIGEST
                )
    except LineageError as error:
        return verdict(str(error))
    if broken:
        return verdict(f"{place}: {'; '.join(broken)}")
    return verdict(f"every file of {place} has its recorded hash", passed=True)


def check_signature(candidate: Version, key: Path | None) -> Verdict:
    """Whether the key signed the folder that serves, as it is now; without a key, signatures are not asked for."""
    place = candidate.pushed_place
    if key is None:
        return Verdict(gate="signature", passed=True, text="not asked for")
    if place is None:
        return Verdict(gate="signature", passed=False, text="it was never pushed")
    try:
        with local_copy(place) as pushed:
            refusal = signing.refusal(pushed, key) if pushed.is_dir() else f"{place} is not there"
    except LineageError as error:
        refusal = str(error)
    return Verdict(gate="signature", passed=refusal is None, text=refusal or f"signed by {key}")


def saved_model_table(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest's table of files that lies in saved_model/, relative to it."""
    inside = "saved_model/"
    files = manifest["files"].items()
    return {path.removeprefix(inside): row for path, row in files if path.startswith(inside)}


def _check_parity(manifest: Mapping[str, Any] | None) -> Verdict:
    if manifest is None:
        return Verdict(gate="parity", passed=False, text="no manifest to read the parity verdict from")
    stages = manifest["parity"].get("stages") or []
    failed = [str(stage.get("stage")) for stage in stages if not stage_holds(stage)]
    if failed or not stages or manifest["parity"].get("passed") is not True:
        text = f"failed at: {', '.join(failed)}" if failed else "no passing parity verdict is recorded"
        return Verdict(gate="parity", passed=False, text=text)
    if loose := loose_limits(manifest["parity"]):
        text = f"{'; '.join(loose)}. Export again without the looser export.gates"
        return Verdict(gate="parity", passed=False, text=text)
    return Verdict(gate="parity", passed=True, text=f"{len(stages)} stages passed")


def _check_overrides(candidate: Version, manifest: Mapping[str, Any] | None) -> Verdict:
    overrides = list((manifest or {}).get("overrides") or []) or candidate.overrides
    if not overrides:
        return Verdict(gate="overrides", passed=True, text="no gate was overridden")
    listed = "; ".join(str(override) for override in overrides)
    return Verdict(gate="overrides", passed=False, text=f"exported with overridden gates: {listed}")


def _check_source(candidate: Version, config: RegistryConfig) -> Verdict:
    dirty = [
        stage
        for stage, tag in (("training", "git_dirty"), ("export", "export_dirty"))
        if candidate.tag(tag) == "true"
    ]
    if not dirty:
        return Verdict(gate="source", passed=True, text=f"commit {candidate.tag('git_commit') or 'unknown'}")
    text = f"uncommitted changes at {' and '.join(dirty)}"
    return Verdict(gate="source", passed=config.allow_dirty, text=text)


def _check_comparison(candidate: Version, current: Version | None, config: RegistryConfig) -> Verdict:
    metric, limit = config.compare_metric, config.max_metric_drop

    def verdict(text: str, *, passed: bool) -> Verdict:
        return Verdict(gate="comparison", passed=passed, text=text)

    if current is None:
        return verdict("there is no champion to compare with", passed=True)
    new, old = candidate.metrics.get(metric), current.metrics.get(metric)
    if new is None or old is None:
        return verdict(f"{metric} is not recorded for both versions", passed=limit is None)
    if candidate.tag("dataset_digest") != current.tag("dataset_digest"):
        return verdict(f"{metric} {new:.4f} against {old:.4f}, on different data", passed=limit is None)
    text = f"{metric} {new:.4f} against the champion's {old:.4f}"
    if limit is None:
        return verdict(text, passed=True)
    return verdict(f"{text}, a drop of at most {limit} is allowed", passed=old - new <= limit)


def _check_approval(config: RegistryConfig, approve_by: str | None) -> Verdict:
    if approve_by:
        return Verdict(gate="approval", passed=True, text=f"approved by {approve_by}")
    if config.approval_required:
        return Verdict(
            gate="approval", passed=False, text="the recipe asks for approval: give --approve-by NAME"
        )
    return Verdict(gate="approval", passed=True, text="not asked for")


def recipe_config(version: Version) -> RegistryConfig:
    """The `registry` section of the recipe in a version's manifest; the defaults where it has none."""
    section = _recipe_section(version, "registry")
    known = {each.name for each in fields(RegistryConfig)}
    return RegistryConfig(**{key: value for key, value in section.items() if key in known})


def signing_key(version: Version) -> Path | None:
    """The verification key of the environment, else of the recipe in a version's manifest; None: there is none."""
    key = _recipe_section(version, "signing").get("verification_key")
    recorded = SigningConfig(verification_key=Path(key) if key else None)
    return signing.configured(recorded).verification_key


def _recipe_section(version: Version, name: str) -> dict[str, Any]:
    for place in (version.bundle_place, version.pushed_place):
        manifest = manifest_at(place) if place else None
        if manifest is not None:
            return dict((manifest.get("recipe") or {}).get(name) or {})
    return {}


def failures(verdicts: list[Verdict]) -> list[str]:
    """Why these verdicts are against a candidate, one text for each gate; empty when none is."""
    return [f"{verdict.gate}: {verdict.text}" for verdict in verdicts if not verdict.passed]
