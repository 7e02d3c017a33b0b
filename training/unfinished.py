"""What an interrupted run leaves behind, and how the same command finds it again.

`<home>/checkpoints/<name>/.unfinished-<fingerprint>/state.pt` is replaced by rename after every epoch: it
holds the last complete one, or is not there. A run with another fingerprint never sees it.
"""

from __future__ import annotations

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
    """{"epoch", "weights": "model" or "ema", "val_top1", "val_loss", "state_dict"} of what will be kept."""
    seconds: float = 0.0
    """Wall time spent training so far, over all attempts."""
    run_id: str | None = None
    """MLflow run of the attempt that wrote it."""

    @property
    def best_weights(self) -> str:
        """`model`, or `ema` where the moving average was better."""
        assert self.best is not None, "no epoch was trained"
        return str(self.best["weights"])


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The place of one fingerprint's unfinished run."""

    folder: Path

    @property
    def file(self) -> Path:
        """The state after the last complete epoch."""
        return self.folder / "state.pt"

    def save(self, task: TrainingTask, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the state beside and rename it. Raises OSError when the disk is full; the old state
        stays."""
        import torch

        state = {
            **task.get_checkpoint_state(),
            **task.get_checkpoint_state(ema=True),
            "optimizer": optimizer.state_dict(),
            "progress": vars(progress),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / "state.new"
        try:
            with open(beside, "wb") as file:
                # An open file, not a path: torch's own writer says "no space left" without an errno.
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        os.replace(beside, self.file)

    def restore(self, task: TrainingTask, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load the state into task and optimizer; None when there is none, or one that is damaged."""
        import pickle

        import torch

        if not self.file.exists():
            return None
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as problem:
            log.warning("cannot read %s (%s): starting again", self.file, problem)
            return None
        task.load_checkpoint_state(state["state_dict"])
        if task.has_ema():
            task.load_checkpoint_state(state["state_dict_ema"], ema=True)
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])

    def discard(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)
