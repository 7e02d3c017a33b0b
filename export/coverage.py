"""Coverage: every model family of the installed timm across the bridge, one after the other.

For each family its smallest variant, with random weights under which numbers mean something
(torch_half/randomize.py), is exported as any model is: dynamic batch, fp32, the rungs in the recipe's order; and
judged by the parity rule on the SavedModel reloaded by a fresh process with TensorFlow's default settings, both
loaders, batch 1, 3 and 8. Every half of every model is a process of its own.

The state is a JSON-lines file, `<home>/coverage/results.jsonl`: a run that was stopped goes on where it was.
What passed is not repeated; what failed is, once the code of the export has changed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isthmus.export import manifest as manifests
from isthmus.export.config import ExportConfig, Rung
from isthmus.export.errors import ExportError
from isthmus.export.jobs import Job, JobRunner
from isthmus.export.ladder import LOWER_MODULE, VERIFY_MODULE, in_order
from isthmus.export.parity import StageResult
from isthmus.export.photographs import folder_of_windows
from isthmus.lineage.files import canonical_json, read_json
from isthmus.lineage.source import code_digest

log = logging.getLogger(__name__)

TORCH_MODULE = "isthmus.export.torch_half.coverage"
BATCH_SIZES = (1, 3, 8)
NUM_IMAGES = 8


@dataclass(kw_only=True, frozen=True)
class CoverageRun:
    """One run over some families, or all."""

    home: Path
    """State, logs and working folders lie in <home>/coverage."""

    config: ExportConfig
    """Rungs, gates, exporter. Its batch sizes are not used: they are 1, 3 and 8."""

    limit_s: float = 600.0
    """A process that takes longer is stopped; the model has failed with that reason."""

    force: bool = False
    """Run what passed before as well."""

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.home.absolute() / "coverage"

    @property
    def state(self) -> Path:
        """The JSON-lines file of results."""
        return self.folder / "results.jsonl"

    def families(self) -> list[str]:
        """Every family of the installed timm, from a process that may import it."""
        with self._working("families") as (runner, folder):
            return list(runner.run(TORCH_MODULE, folder / "families", {"families": True})["families"])

    def cover(self, families: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Export the families that are not done; yields each result, after it was written to the state."""
        known, code = read_results(self.state), code_digest("isthmus.export")
        images = folder_of_windows(self.home)
        for family in families:
            before = known.get(family)
            done = before is not None and (before["passed"] or before["code"] == code)
            if done and not self.force:
                continue
            result = self._one(family, images=images, code=code)
            with open(self.state, "a", encoding="utf-8") as file:
                file.write(canonical_json(result) + "\n")
            yield result

    def _one(self, family: str, *, images: Path, code: str) -> dict[str, Any]:
        result: dict[str, Any] = {
            "family": family,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": code,
            "versions": manifests.versions(),
            "passed": False,
            "rung": None,
            "rungs": [],
        }
        started = time.monotonic()
        with self._working(family) as (runner, folder):
            bundle = folder / "bundle"
            bundle.mkdir()
            request = {
                "family": family,
                "images": str(images),
                "bundle": str(bundle),
                "config": asdict(self.config),
                "num_images": NUM_IMAGES,
            }
            try:
                with runner.start(TORCH_MODULE, folder / "torch") as job:
                    job.send(request)
                    torch_half = job.answer(on_progress=result.update)
            except ExportError as error:
                result |= {"problem": f"torch half: {error}", **_memory(folder / "torch", "torch")}
            else:
                result |= _facts(torch_half)
                result |= _judged(self._climb(runner, folder, torch_half), torch_half)
        return {**result, "seconds": round(time.monotonic() - started, 1)}

    def _climb(self, runner: JobRunner, folder: Path, torch_half: dict[str, Any]) -> list[dict[str, Any]]:
        if not torch_half["stage"]["passed"]:
            return []
        rungs: list[dict[str, Any]] = []
        for rung in in_order(self.config.rungs, attention=torch_half["attention"]):
            rungs.append(self._rung(runner, folder, rung, torch_half))
            if rungs[-1]["passed"]:
                break
        return rungs

    def _rung(
        self, runner: JobRunner, folder: Path, rung: Rung, torch_half: dict[str, Any]
    ) -> dict[str, Any]:
        lower, verify = folder / f"lower-{rung}", folder / f"verify-{rung}"
        model, saved_model = torch_half["model"], lower / "saved_model"
        shared = {
            "saved_model": str(saved_model),
            "reference": str(folder / "bundle" / "reference.npz"),
            "labels": model["labels"],
            "head": model["head"],
        }
        started = time.monotonic()
        tried: dict[str, Any] = {"rung": rung, "passed": False}
        try:
            with runner.start(LOWER_MODULE, lower) as job:
                job.send(
                    {
                        **shared,
                        "onnx": str(folder / "bundle" / "model.onnx"),
                        "rung": rung,
                        "preprocessing": torch_half["preprocessing"],
                        "warmup_batch_sizes": [1],
                    }
                )
                job.answer()
            tried["conversion_s"] = round(time.monotonic() - started, 1)
            with runner.start(VERIFY_MODULE, verify) as job:
                answer = self._verified(job, shared)
            stage = StageResult(**answer["stages"][0])
            tried |= {
                "passed": stage.passed,
                "error": stage.error,
                "top1_agreement": stage.top1_agreement,
                "problem": stage.problem,
                # oneDNN's kernels have names of their own.
                "transposes": sum(
                    answer["operators"].get(name, 0) for name in ("Transpose", "_MklTranspose")
                ),
                "mkl_layer_norms": answer["operators"].get("_MklLayerNorm", 0),
                "saved_model_bytes": sum(p.stat().st_size for p in saved_model.rglob("*") if p.is_file()),
            }
        except ExportError as error:
            tried["problem"] = str(error)
        return {**tried, "seconds": round(time.monotonic() - started, 1), **_memory(lower, "conversion")}

    def _verified(self, job: Job, shared: dict[str, Any]) -> dict[str, Any]:
        job.send(
            {
                **shared,
                "name": "coverage",
                "batch_sizes": list(BATCH_SIZES),
                "gates": vars(self.config.gates),
                "stages": ["saved_model"],
            }
        )
        return job.answer()

    @contextlib.contextmanager
    def _working(self, family: str) -> Iterator[tuple[JobRunner, Path]]:
        """Where one family's files lie while it runs, and what starts its processes."""
        folder = self.folder / "working" / family
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log_path = self.folder / "logs" / f"{family}.log"
        log_path.unlink(missing_ok=True)
        try:
            yield JobRunner(log_path=log_path, timeout_s=self.limit_s), folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def read_results(state: Path) -> dict[str, dict[str, Any]]:
    """The last result of each family; a line that was cut off by a kill is passed over."""
    results: dict[str, dict[str, Any]] = {}
    if state.is_file():
        for line in state.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                results[row["family"]] = row
    return results


def line(result: dict[str, Any]) -> str:
    """One result for a person."""
    choice = result.get("choice") or {}
    name = f"{result['family']:<28} {choice.get('model', '-'):<36}"
    if not result["passed"]:
        return f"{name} FAILED: {result['problem']}"
    return f"{name} {result['rung']:<8} {result['error']:.1e}  {result['seconds']:.0f} s"


def _facts(torch_half: dict[str, Any]) -> dict[str, Any]:
    kept = ("choice", "weights_bytes", "randomization", "nodes")
    return {
        **{key: torch_half[key] for key in kept},
        "input_size": torch_half["preprocessing"]["input_size"],
        "onnx_error": torch_half["stage"]["error"],
        "torch_memory_bytes": torch_half["peak_memory_bytes"],
    }


def _judged(rungs: list[dict[str, Any]], torch_half: dict[str, Any]) -> dict[str, Any]:
    if not rungs:
        return {"rungs": [], "problem": f"torch → ONNX Runtime: {torch_half['stage']['problem']}"}
    last = rungs[-1]
    if not last["passed"]:
        return {
            "rungs": rungs,
            "problem": " | ".join(f"{tried['rung']}: {tried['problem']}" for tried in rungs),
        }
    kept = ("rung", "error", "top1_agreement", "transposes", "mkl_layer_norms", "conversion_memory_bytes")
    return {"rungs": rungs, "passed": True, **{key: last.get(key) for key in kept}}


def _memory(folder: Path, what: str) -> dict[str, int]:
    """What the process said of its memory at its end; nothing of one that was killed."""
    for name in ("result.json", "error.json"):
        if (folder / name).is_file():
            return {f"{what}_memory_bytes": int(read_json(folder / name)["peak_memory_bytes"])}
    return {}
