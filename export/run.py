"""The export stage, top to bottom: a checkpoint in, a verified and published bundle out.

The parent process here imports neither torch nor TensorFlow. It starts one process for the torch half, then
for each rung of the ladder one that lowers and saves and a fresh one that verifies; what passes is published.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isthmus.export import bundle as bundles
from isthmus.export import checkpoint as checkpoints
from isthmus.export import manifest as manifests
from isthmus.export.checkpoint import Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.elsewhere import ReferenceImages
from isthmus.export.errors import ExportError, ParityRefusedError
from isthmus.export.jobs import Job, JobRunner
from isthmus.export.ladder import LITERT_FILE, Attempt, Ladder, in_order, winner
from isthmus.export.parity import Report, StageResult
from isthmus.export.recording import is_known, recorded
from isthmus.export.reference import Reference
from isthmus.export.staging import Staging, staging
from isthmus.lineage import signing as signatures
from isthmus.lineage import tracking
from isthmus.lineage.config import SigningConfig
from isthmus.lineage.files import point_latest, sha256_file, write_json

log = logging.getLogger(__name__)

TORCH_MODULE = "isthmus.export.torch_half"


def export(
    *,
    name: str,
    checkpoint: Path,
    data_root: Path | None,
    config: ExportConfig,
    home: Path,
    tracking_uri: str | None = None,
    recipe: dict[str, Any],
    force: bool = False,
    images: ReferenceImages | None = None,
    diagnose: bool = False,
    signing: SigningConfig | None = None,
) -> Path:
    """Carry a checkpoint across the bridge and publish the bundle.

    Args:
        name: Registered name; the bundle goes to <home>/bundles/<name>/<id>, and `latest` points there.
        checkpoint: Directory of a finished training.
        data_root: Folder whose reference split holds real images; None: the one the model was trained from.
        config: Gates, rungs, batch sizes.
        home: The home folder.
        tracking_uri: MLflow store; None: the home folder's.
        recipe: The resolved recipe, recorded as it is.
        force: Export again although nothing changed.
        images: Instead of data_root for a model that was trained elsewhere: any folder of images.
        diagnose: Where no rung passes, say which ONNX node is the first to differ (minutes).
        signing: The key to sign the bundle with; the environment's wins. Without a key it is not signed.

    Returns:
        The published bundle, or the earlier one made from the same checkpoint, configuration and code and
        recorded in the same store.

    Raises:
        ExportError: Something given cannot be used, or a half failed; nothing is published.
        ParityRefusedError: No rung passed the gates; the text says which stage, how far and on which image.
    """
    source = checkpoints.read(checkpoint)
    images = images or ReferenceImages(
        root=_data_root(source, data_root), source=f"split {config.reference_split!r} of the data set"
    )
    fingerprint = manifests.fingerprint(source, config=config, recipe=recipe, data_root=images.root)
    folder = home.absolute() / "bundles" / name

    signing = signatures.configured(signing)
    signatures.check(signing)

    def of_this_store(bundle: bundles.Bundle) -> bool:
        return signatures.is_usable(bundle.saved_model, signing) and is_known(
            bundle, tracking.connect(home, tracking_uri)
        )

    if not force and (known := bundles.find_by_fingerprint(folder, fingerprint, usable=of_this_store)):
        point_latest(folder / "latest", known.path)
        log.info("export is up to date: %s", known.path)
        return known.path
    bundle_id = bundles.new_id()
    with staging(folder) as stage:
        exporter = _Exporter(
            name=name,
            source=source,
            images=images,
            config=config,
            recipe=recipe,
            fingerprint=fingerprint,
            staging=stage,
            target=folder / bundle_id,
            log_stem=home.absolute() / "logs" / f"export-{name}-{bundle_id}",
            diagnose=diagnose,
            signing=signing,
        )
        return exporter.run(home=home, tracking_uri=tracking_uri)


class _Exporter:
    """One export while it runs: the values that all its steps share."""

    def __init__(
        self,
        *,
        name: str,
        source: Checkpoint,
        images: ReferenceImages,
        config: ExportConfig,
        recipe: dict[str, Any],
        fingerprint: str,
        staging: Staging,
        target: Path,
        log_stem: Path,
        diagnose: bool,
        signing: SigningConfig,
    ) -> None:
        self.name, self.source, self.images = name, source, images
        self.config, self.recipe, self.fingerprint = config, recipe, fingerprint
        self.staging, self.target, self.log_stem = staging, target, log_stem
        self.diagnose, self.signing = diagnose, signing
        self.bundle = staging.path / "bundle"
        self.bundle.mkdir()
        self.runner = JobRunner(
            log_path=log_stem.with_name(f"{log_stem.name}.log"),
            timeout_s=config.stage_timeout_s,
            keep_open=(staging.lock,),
        )
        self.manifest = manifests.provisional(
            name=name, checkpoint=source, recipe=recipe, images=images.source
        )
        self.ladder = Ladder(
            runner=self.runner,
            folder=staging.path,
            config=config,
            manifest=self.manifest,
            onnx=self.bundle / "model.onnx",
            reference=self.bundle / "reference.npz",
            torch_half=staging.path / "torch",
        )

    def run(self, *, home: Path, tracking_uri: str | None) -> Path:
        """Both halves, the verdict, the bundle."""
        started = time.monotonic()
        model = self.source.model
        log.info("exporting %s: %s, %d classes", self.name, model["name"], model["num_classes"])
        log.debug("the processes write to %s", self.runner.log_path)
        # Three things that take seconds before they do any work: torch, TensorFlow, MLflow.
        with (
            self._start_torch_half() as torch_half,
            self.ladder.start_lowering() as first_rung,
            recorded(
                name=self.name,
                checkpoint=self.source,
                config=self.config,
                target=self.target,
                home=home,
                tracking_uri=tracking_uri,
                fingerprint=self.fingerprint,
            ) as recording,
        ):
            torch_result = self._finish_torch_half(torch_half)
            stage = StageResult(**torch_result["stage"])
            rungs = in_order(self.config.rungs, attention=torch_result["attention"])
            attempts = self.ladder.climb(stage, first_rung, rungs=rungs) if self._may_go_on(stage) else []
            chosen = winner(attempts, self.config)
            if chosen is None:
                raise self._refusal(stage, attempts)
            shutil.move(chosen.saved_model, self.bundle / "saved_model")
            if (converted := chosen.saved_model.with_name(LITERT_FILE)).is_file():
                shutil.move(converted, self.bundle / LITERT_FILE)
            self._write_parity(chosen.report, self.bundle / "parity")
            export = self._export_record(torch_result, attempts, chosen)
            sealed = bundles.seal(
                self.bundle,
                manifests.complete(
                    self.manifest,
                    report=chosen.report,
                    config=self.config,
                    export={**export, "mlflow": recording.ids},
                ),
            )
            if self.signing.key is not None:
                signatures.sign(sealed.saved_model, self.signing)
                log.info("%-22s with %s", "signed", self.signing.key)
            recording.store(sealed, chosen.report)
            published = bundles.publish(self.bundle, self.target)
        for failure in chosen.report.failures:
            log.warning("published although %s failed: an override is recorded", failure.title)
        log.info("bundle: %s  (%s, %.0f s)", published.path, chosen.rung, time.monotonic() - started)
        return published.path

    def _start_torch_half(self) -> Job:
        job = self.runner.start(TORCH_MODULE, self.staging.path / "torch")
        job.send(
            {
                "checkpoint": str(self.source.path),
                "data_root": str(self.images.root),
                "bundle": str(self.bundle),
                "config": asdict(self.config),
            }
        )
        return job

    def _finish_torch_half(self, job: Job) -> dict[str, Any]:
        result = job.answer()
        for tried in result["exporters_tried"]:
            if not tried["passed"]:
                log.warning("the %s exporter did not carry it: %s", tried["exporter"], tried["error"])
        for path in result["unreadable"]:
            log.warning("%s does not decode; it is not among the reference images", path)
        log.info(
            "%-22s %d images, %s exporter, opset %d, %d nodes",
            "ONNX written",
            result["num_images"],
            result["exporter"],
            result["opset"],
            result["nodes"],
        )
        log.info("%s", StageResult(**result["stage"]).line())
        return result

    def _may_go_on(self, stage: StageResult) -> bool:
        """Whether TensorFlow has anything to do: an ONNX file that is not the model is the end of it."""
        return stage.passed or any(override.gate == stage.stage for override in self.config.overrides)

    def _write_parity(self, report: Report, stem: Path) -> None:
        from isthmus.export.parity_plot import draw

        write_json(stem.with_name(f"{stem.name}.json"), report.as_dict())
        draw(
            report,
            Reference.load(self.bundle / "reference.npz"),
            stem.with_name(f"{stem.name}.png"),
            title=f"{self.name} ({self.source.model['name']})",
            labels=self.source.model["labels"],
        )

    def _export_record(
        self, torch_result: dict[str, Any], attempts: list[Attempt], chosen: Attempt
    ) -> dict[str, Any]:
        return {
            "onnx_sha256": sha256_file(self.bundle / "model.onnx"),
            "opset": torch_result["opset"],
            "exporter": torch_result["exporter"],
            "exporters_tried": torch_result["exporters_tried"],
            "simplified": torch_result["simplified"],
            "rung": chosen.rung,
            "rungs_tried": [attempt.as_dict() for attempt in attempts],
            "precision": self.config.precision,
            **reduced_record(self.config, torch_result),
            "formats": list(self.config.formats),
            "litert": chosen.litert or None,
            "fingerprint": self.fingerprint,
        }

    def _refusal(self, stage: StageResult, attempts: list[Attempt]) -> ParityRefusedError:
        """The error for an export that nothing passed; its report stays in the log folder."""
        report = (
            attempts[-1].report
            if attempts
            else Report.of([stage], gates=self.config.gates, expected=self.config.stages)
        )
        stem = self.log_stem.with_name(f"{self.log_stem.name}-parity")
        self._write_parity(report, stem)
        reasons = [f"{attempt.rung}: {attempt.problem}" for attempt in attempts]
        if self.diagnose:
            self._diagnose(stage, attempts)
        if not attempts:
            reasons = [f"{stage.title}: {stage.problem}"]
        return ParityRefusedError(
            f"{self.name} is not exported, it would not be the same model. {' | '.join(reasons)}. "
            f"See {stem}.png and {self.runner.log_path}"
        )

    def _diagnose(self, stage: StageResult, attempts: list[Attempt]) -> None:
        from isthmus.export.diagnosis import diagnose

        if not attempts:
            log.info(
                "diagnosis: %s is already another model: no graph of TensorFlow is to blame", stage.title
            )
            return
        limit = self.config.gates.logit_error
        assert limit is not None, "ExportConfig refuses it"
        lines = diagnose(
            attempts,
            runner=self.runner,
            folder=self.staging.path,
            onnx=self.bundle / "model.onnx",
            reference=self.bundle / "reference.npz",
            limit=limit,
            stem=self.log_stem.with_name(f"{self.log_stem.name}-diagnosis"),
            precision=self.config.precision,
        )
        for line in lines:
            log.info("%s", line)


def reduced_record(config: ExportConfig, torch_result: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says about reduced precision: limits, and the images that were measured on."""
    if not config.is_reduced:
        return {}
    images = {
        purpose: {key: value for key, value in chosen.items() if key != "file"}
        for purpose, chosen in torch_result["reduced"].items()
    }
    return {"reduced": {"limits": asdict(config.reduced), **images}}


def _data_root(source: Checkpoint, data_root: Path | None) -> Path:
    chosen = data_root or Path(source.record["dataset"].get("root") or "")
    if not chosen.is_dir() or chosen == Path(""):
        raise ExportError(
            f"no images at {chosen}: parity is measured on real ones; "
            "give the data folder that the model was trained from"
        )
    return chosen.resolve()
