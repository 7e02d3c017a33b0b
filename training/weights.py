"""Local weights to start from: timm's own reader and key filters, held against the model before anything is
trained."""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NAMED = 3
"""Keys of each kind that an error names; the rest is counted."""


def check_file(weights: Path) -> Path:
    """The absolute path; raises TrainingError when there is no such file."""
    path = weights.expanduser().absolute()
    if not path.is_file():
        raise TrainingError(f"weights {path} do not exist; give a .safetensors file or one of torch.save")
    return path


def digest(weights: Path) -> str:
    """SHA-256 of the file, as the fingerprint of a run holds it."""
    with open(check_file(weights), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(model: torch.nn.Module, weights: Path, *, called: str) -> None:
    """Load a state dict into `model`; a classifier of another number of classes keeps its new weights.

    Raises TrainingError for a file that is none, or that holds more than tensors (nothing in it is executed), and
    for keys that are missing, unknown or of another shape: how many, and the first of them.
    """
    state = _filtered(model, _read(check_file(weights)))
    wanted = model.state_dict()
    head = tuple(f"{name}." for name in _classifiers(model))
    replaced = [
        key
        for key in wanted
        if key.startswith(head) and (key not in state or state[key].shape != wanted[key].shape)
    ]
    state = {key: value for key, value in state.items() if not (key.startswith(head) and key in replaced)}
    if problem := _misfit(wanted, state, ignored=frozenset(replaced), head=head):
        raise TrainingError(f"{weights} does not fit {called}: {problem}")
    model.load_state_dict({key: state.get(key, wanted[key]) for key in wanted})
    if replaced:
        log.info("weights %s: the head is new (%s)", weights.name, ", ".join(replaced))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """timm's reader: takes averaged weights where there are any, and strips what wrappers put before names."""
    import safetensors
    import torch
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, safetensors.SafetensorError) as problem:
        raise TrainingError(f"{path} holds no weights that can be read: {_line(problem)}") from problem
    except pickle.UnpicklingError as problem:
        raise TrainingError(
            f"{path} holds more than tensors, and nothing in it is executed: save model.state_dict() alone, best "
            f"as .safetensors"
        ) from problem
    if not isinstance(state, Mapping):
        raise TrainingError(f"{path} holds a {type(state).__name__}; a state dict (name: tensor) is wanted")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TrainingError(f"{path} holds no tensors; a state dict (name: tensor) is wanted")
    return tensors


def _filtered(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys as timm renames those of the model's original repository, and positions at this input size."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        return dict(rename(dict(state), model))
    except Exception:  # noqa: BLE001 - a converter for other files than this one may fail in any way
        return state


def _classifiers(model: torch.nn.Module) -> tuple[str, ...]:
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _misfit(
    wanted: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    *,
    ignored: frozenset[str],
    head: tuple[str, ...],
) -> str | None:
    found = {
        f"of its {len(wanted)} tensors missing": [
            key for key in wanted if key not in state and key not in ignored
        ],
        "not the model's": [key for key in state if key not in wanted and not key.startswith(head)],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
            for key, value in wanted.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    return (
        "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:NAMED])}{', …' if len(keys) > NAMED else ''})"
            for what, keys in found.items()
            if keys
        )
        or None
    )


def _line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
