"""The ladder of lowerings: each rung is lowered, saved and verified; the first that passes wins."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.export.bundle import write_manifest_copies
from isthmus.export.config import ExportConfig, Rung
from isthmus.export.errors import ExportError
from isthmus.export.jobs import Job, JobRunner
from isthmus.export.parity import Report, StageResult, failed_stage

log = logging.getLogger(__name__)

LOWER_MODULE = "isthmus.export.tf_half"
VERIFY_MODULE = "isthmus.export.tf_half.verify"
LITERT_MODULE = "isthmus.export.tf_half.litert_verify"
LITERT_FILE = "model.tflite"


@dataclass(kw_only=True)
class Attempt:
    """One rung's try."""

    rung: Rung
    """Which."""

    saved_model: Path
    """Where its SavedModel lies, if it got that far."""

    report: Report
    """The verdict: of every stage, those that never ran included."""

    problem: str | None
    """Why it did not pass, in a line."""

    litert: dict[str, Any]
    """What is to be known about model.tflite, beside the SavedModel; empty where none was asked for."""

    seconds: float
    """Wall time of lowering, saving and verifying."""

    def as_dict(self) -> dict[str, Any]:
        """The manifest's row."""
        return {
            "rung": self.rung,
            "passed": self.problem is None,
            "error": self.problem,
            "seconds": round(self.seconds, 1),
        }


@dataclass(kw_only=True, frozen=True)
class Ladder:
    """All that the rungs share."""

    runner: JobRunner
    """Starts the TensorFlow processes."""

    folder: Path
    """Each rung works in a sub-folder of it."""

    config: ExportConfig
    """Rungs, gates, batch sizes."""

    manifest: dict[str, Any]
    """The provisional manifest: model, labels, preprocessing."""

    onnx: Path
    """The model to lower."""

    reference: Path
    """reference.npz."""

    torch_half: Path
    """Where the torch half leaves what reduced precision is measured on, if it is asked to."""

    def start_lowering(self, place: int = 0) -> Job:
        """Start a rung's first process ahead of time: TensorFlow's import takes as long as the torch half."""
        return self.runner.start(LOWER_MODULE, self.folder / f"lower-{place}")

    def climb(self, first_stage: StageResult, first_job: Job, *, rungs: Sequence[Rung]) -> list[Attempt]:
        """Try rung after rung until one passes every gate; returns all tries, the one that passed last.

        `first_job` is the first rung's process, already started.
        """
        attempts: list[Attempt] = []
        for rung in rungs:
            job = first_job if not attempts else self.start_lowering(len(attempts))
            with job:
                attempts.append(self._try(rung, job, first_stage))
            if attempts[-1].problem is None:
                break
            log.warning("rung %s did not pass", rung)
            log.debug("rung %s: %s", rung, attempts[-1].problem)
        return attempts

    def _try(self, rung: Rung, lowering: Job, first_stage: StageResult) -> Attempt:
        started = time.monotonic()
        saved_model = lowering.folder / "saved_model"
        lowering.send(self._lower_request(rung, saved_model))
        stages: list[StageResult] = [first_stage]
        problem = None
        litert: dict[str, Any] = {}
        # Both import TensorFlow: the second does it while the first works.
        with self.runner.start(VERIFY_MODULE, self.folder / f"verify-{rung}") as verifying:
            try:
                lowered = lowering.answer()
                log.info("%-22s %s, %.1f s", "lowered and saved", rung, time.monotonic() - started)
                write_manifest_copies(saved_model, self.manifest)
                verifying.send(self._verify_request(rung, saved_model))
                answer = verifying.answer(on_progress=_log_stage)
                stages += [StageResult(**stage) for stage in answer["stages"]]
                if litert := lowered.get("litert", {}):
                    stages.append(self._litert(rung, saved_model.with_name(LITERT_FILE), litert))
            except ExportError as error:
                problem = str(error)
        report = Report.of(stages, gates=self.config.gates, expected=self.config.stages)
        if problem is None and report.failures:
            problem = _in_one_line(report.failures)
        return Attempt(
            rung=rung,
            saved_model=saved_model,
            report=report,
            problem=problem,
            litert=litert,
            seconds=time.monotonic() - started,
        )

    def _lower_request(self, rung: Rung, saved_model: Path) -> dict[str, Any]:
        model = self.manifest["model"]
        return {
            "onnx": str(self.onnx),
            "rung": rung,
            "saved_model": str(saved_model),
            "reference": str(self.reference),
            "preprocessing": self.manifest["preprocessing"],
            "labels": model["labels"],
            "head": model["head"],
            "warmup_batch_sizes": list(self.config.warmup_batch_sizes),
            **self._precision(),
            **({"tflite": str(saved_model.with_name(LITERT_FILE))} if self.config.has_litert else {}),
        }

    def _verify_request(self, rung: Rung, saved_model: Path) -> dict[str, Any]:
        model = self.manifest["model"]
        log_path = self.runner.log_path
        return {
            "name": self.manifest["name"],
            "saved_model": str(saved_model),
            "reference": str(self.reference),
            "labels": model["labels"],
            "head": model["head"],
            "batch_sizes": list(self.config.batch_sizes),
            "gates": vars(self.config.served_gates),
            **self._evaluation(),
            "server_log": str(log_path.with_name(f"{log_path.stem}-server-{rung}.log")),
        }

    def _litert(self, rung: Rung, model: Path, converted: dict[str, Any]) -> StageResult:
        """The verdict on model.tflite, measured by a process of its own."""
        if "problem" in converted:
            stage = failed_stage("litert", converted["problem"], gates=self.config.served_gates)
        else:
            request = {
                "model": str(model),
                "reference": str(self.reference),
                "head": self.manifest["model"]["head"],
                "gates": vars(self.config.gates),
                **self._evaluation(),
            }
            answer = self.runner.run(LITERT_MODULE, self.folder / f"litert-{rung}", request)
            stage = StageResult(**answer["stage"])
        log.info("%s", stage.line())
        return stage

    def _precision(self) -> dict[str, Any]:
        if not self.config.is_reduced:
            return {}
        is_calibrated = self.config.precision == "int8"
        return {
            "precision": self.config.precision,
            "calibration": str(self.torch_half / "calibration.npz") if is_calibrated else None,
        }

    def _evaluation(self) -> dict[str, Any]:
        if not self.config.is_reduced:
            return {}
        return {"evaluation": str(self.torch_half / "evaluation.npz"), "reduced": vars(self.config.reduced)}


def in_order(rungs: Sequence[Rung], *, attention: bool) -> tuple[Rung, ...]:
    """The configured rungs, `direct` at the front for a graph with attention.

    onnx2tf turns axes around, and at each product of two computed matrices it finds out by trial which turn is
    right: it builds the whole net up to there anew and runs it. Such nets take it minutes and more memory than
    the rest of the export (efficientvit_b0: 153 s and 1,017 MB, direct 7 s and 864 MB), and the larger half of
    them it does not carry.
    """
    return tuple(sorted(rungs, key=lambda rung: rung != "direct")) if attention else tuple(rungs)


def _in_one_line(failures: Sequence[StageResult]) -> str:
    """Each problem once, with the stages that have it: a server that does not start fails two of them."""
    titles: dict[str, list[str]] = {}
    for stage in failures:
        titles.setdefault(stage.problem or "failed", []).append(stage.title)
    return "; ".join(f"{', '.join(stages)}: {problem}" for problem, stages in titles.items())


def _log_stage(stage: dict[str, Any]) -> None:
    log.info("%s", StageResult(**stage).line())


def winner(attempts: Sequence[Attempt], config: ExportConfig) -> Attempt | None:
    """The try that passed, or else the first with a SavedModel whose every failure somebody has accepted."""
    with contextlib.suppress(StopIteration):
        return next(attempt for attempt in attempts if attempt.problem is None)
    for attempt in attempts:
        complete = (attempt.saved_model / "saved_model.pb").is_file()
        if complete and not attempt.report.refused_by(config.overrides):
            return attempt
    return None
