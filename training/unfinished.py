"""What an interrupted run leaves behind, and how the same command finds it again.

`<home>/checkpoints/<name>/.unfinished-<fingerprint>/state-<epoch>-<step>.pt` is written beside and renamed, with its
SHA-256 after it; the last few are kept. A state that is torn is recognised by its hash, and the one before it is
used. A run with another fingerprint never sees them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """How far a run is, beyond what the task and the optimizer hold."""

    epochs_done: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of metrics an epoch."""
    best: dict[str, Any] | None = None
    """{"epoch", "weights": "model" or "ema", "val_loss", the metric that decides, "state_dict"} of what will be
    kept."""
    seconds: float = 0.0
    """Wall time spent training so far, over all attempts."""
    run_id: str | None = None
    """MLflow run of the attempt that wrote it."""
    within: dict[str, Any] | None = None
    """Inside an epoch: {"batches", "sums": one a rank}, see Trainer.epoch; None between epochs."""

    @property
    def best_weights(self) -> str:
        """`model`, or `ema` where the moving average was better."""
        assert self.best is not None, "no epoch was trained"
        return str(self.best["weights"])

    @property
    def position(self) -> tuple[int, int]:
        """(complete epochs, batches done of the next)."""
        return self.epochs_done, self.within["batches"] if self.within else 0


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The place of one fingerprint's unfinished run."""

    folder: Path
    keep: int = 2
    """States that are kept."""

    def save(
        self, task: TrainingTask, optimizer: torch.optim.Optimizer, scaler: Any, progress: Progress
    ) -> None:
        """Write the state beside and rename it. Raises OSError when the disk is full; the old ones stay."""
        import torch

        state = {
            **task.get_checkpoint_state(),
            **task.get_checkpoint_state(ema=True),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "progress": vars(progress),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        epoch, batch = progress.position
        target, beside = self.folder / f"state-{epoch:05d}-{batch:07d}.pt", self.folder / "state.new"
        try:
            with open(beside, "wb") as file:
                # An open file, not a path: torch's own writer says "no space left" without an errno.
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            with open(beside, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            (self.folder / f"{target.stem}.sha256").write_text(digest)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        os.replace(beside, target)
        for old in self.states()[self.keep :]:
            old.unlink(missing_ok=True)
            old.with_suffix(".sha256").unlink(missing_ok=True)

    def states(self) -> list[Path]:
        """All states, the newest first."""
        return sorted(self.folder.glob("state-*.pt"), reverse=True)

    def read(self) -> tuple[Progress, dict[str, Any]] | None:
        """(progress, everything) of the newest state that is whole; None when there is none."""
        import torch

        for file in self.states():
            try:
                content = file.read_bytes()
                if hashlib.sha256(content).hexdigest() != file.with_suffix(".sha256").read_text():
                    raise ValueError("its bytes are not the ones that were written")
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return Progress(**state["progress"]), state
            except Exception as problem:  # noqa: BLE001 - a torn file may fail in any way; the one before may be whole
                log.warning("cannot read %s (%s): trying the one before", file, problem)
        return None

    def discard(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def restore(state: dict[str, Any], task: TrainingTask, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    """Load what `Unfinished.read` returned into a freshly built run."""
    task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    if task.has_ema():
        task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
