"""State dicts from anywhere: read without running anything, unwrapped, and held against the model."""

from __future__ import annotations

import argparse
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.errors import ExportError

if TYPE_CHECKING:
    import torch

#: Where training programs put the state dict, the averaged weights first, as timm's own evaluation has it.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
#: What DataParallel, torch.compile, EMA wrappers and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NAMED = 3


def read_state_dict(file: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """(tensors by name, the wrapper they lay in) of a .safetensors file or of what torch.save wrote.

    torch's weights-only unpickler reads the latter: nothing in the file is executed.

    Raises:
        ExportError: Not such a file, or one that holds more than tensors and plain values.
    """
    loaded = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    wrapper = None
    while isinstance(loaded, Mapping):
        inside = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inside is None:
            break
        loaded, wrapper = loaded[inside], inside
    return _tensors(loaded, file), wrapper


def _safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{file} is not a readable safetensors file: {_line(error)}") from error


def _pickled(file: Path) -> Any:
    import torch

    try:
        # timm's own checkpoints keep the command line beside the weights: a Namespace runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file) or "Unsupported global" in str(error):
            raise ExportError(
                f"{file} holds Python objects, not only tensors, and isthmus runs no code from a file: save "
                "model.state_dict() alone, best as .safetensors"
            ) from error
        raise ExportError(f"{file} is not a file of torch.save: {_line(error)}") from error
    except Exception as error:
        raise ExportError(f"{file} is not a file of torch.save: {_line(error)}") from error


def _tensors(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(loaded, Mapping):
        raise ExportError(f"{file} holds a {type(loaded).__name__}; a state dict (name → tensor) is wanted")
    state = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not state:
        keys = ", ".join(str(key) for key in list(loaded)[:5]) or "nothing"
        raise ExportError(f"{file} holds no tensors ({keys}); a state dict is wanted")
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state if key != "n_averaged"):
                state = {
                    key.removeprefix(prefix): value for key, value in state.items() if key != "n_averaged"
                }
                stripped = True
    return state


def num_classes(state: Mapping[str, torch.Tensor], classifier: Any) -> int | None:
    """The classes that a state dict answers, from its classifier's bias or weight; None: not to be seen."""
    for name in _names(classifier):
        for part in ("bias", "weight"):
            tensor = state.get(f"{name}.{part}")
            if tensor is not None:
                return int(tensor.shape[0])
    return None


def load_into(model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, file: Path, called: str) -> bool:
    """Load a state dict strictly; True when timm's own filter had to rename another repository's keys.

    Raises:
        ExportError: It does not fit; the text counts and names the keys.
    """
    problem = _misfit(model, state)
    renamed = False
    if problem:
        filtered = _filtered(model, state)
        if filtered is not None and not _misfit(model, filtered):
            state, problem, renamed = filtered, None, True
    if problem:
        raise ExportError(f"{file} does not fit {called}: {problem}")
    model.load_state_dict(dict(state), strict=True)
    return renamed


def _filtered(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The keys as timm's converter for this model's original repository renames them."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return None
    try:
        return dict(rename(dict(state), model))
    except Exception:  # noqa: BLE001 - a converter for other files than this one may fail in any way
        return None


def _misfit(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> str | None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    if missing and set(missing) == {key for key in wanted if _of_classifier(model, key)}:
        return (
            f"the classifier is missing ({', '.join(missing)}): weights of the features alone answer no classes; train "
            "a head on them (isthmus train with model.weights)"
        )
    unknown = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})"
        for names, what in (
            (missing, f"of its {len(wanted)} tensors missing"),
            (unknown, "not the model's"),
            (shapes, "of another shape"),
        )
        if names
    ]
    return "; ".join(parts) or None


def _of_classifier(model: torch.nn.Module, key: str) -> bool:
    names = _names(getattr(model, "pretrained_cfg", {}).get("classifier"))
    return any(key.startswith(f"{name}.") for name in names)


def _names(classifier: Any) -> list[str]:
    """timm has one name of a classifier, several, or none."""
    return [classifier] if isinstance(classifier, str) else list(classifier or ())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
