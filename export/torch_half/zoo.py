"""timm's model modules, and the smallest real variant of each."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from isthmus.export.errors import ExportError

#: Modules that hold more than one family that people know by name: each prefix is a family of its own.
SPLIT_MODULES = {"maxxvit": ("maxvit", "coatnet")}

#: What names a small variant, the smallest first; only the likely ones are built (without memory) and counted.
_SMALL = (
    r"zepto",
    r"atto",
    r"femto",
    r"pico",
    r"nano",
    r"xxs|xx_small|xxtiny",
    r"_xs|x_small",
    r"_ti\d*_|_ti$",
    r"tiny|_t\d*$|_t\d*_",
    r"mini",
    r"_[bm]0|_m1$|_050|_002|_l1",
    r"small|_s\d*_|_s\d*$|128s|slim",
    r"1[048]",
    r"2[0-9]",
)
_NUM_BUILT = 10
_BUDGET_S = 25.0
#: A family whose smallest variant is larger than this is built shallower: its blocks are all alike.
_LARGEST = 300_000_000
_SHALLOW: dict[str, Any] = {"depth": 4}


@dataclass(kw_only=True, frozen=True)
class Choice:
    """The variant that stands for a family, and what it was chosen from."""

    family: str
    """A module of timm.models, or a prefix of SPLIT_MODULES."""

    model: str
    """timm name."""

    num_parameters: int
    """With 100 classes."""

    input_size: tuple[int, int, int]
    """[C, H, W] of timm's configuration."""

    num_built: int
    """Variants whose parameters were counted."""

    num_variants: int
    """Variants that the family has."""

    args: dict[str, Any] = field(default_factory=dict)
    """For timm.create_model: what makes a family without a small variant shallower."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "input_size": list(self.input_size)}


def families() -> list[str]:
    """Every model module of the installed timm, those with two well-known families split."""
    names: list[str] = []
    for module in sorted(_modules()):
        names += SPLIT_MODULES.get(module, (module,))
    return names


def choose(wanted: str, *, num_classes: int) -> Choice:
    """The variant with the least parameters × pixels of a family; or a model by its own name.

    timm's `test_*` models are left out: they exist for unit tests and nobody serves one. Models are built on
    torch's meta device, which computes and stores nothing.

    Raises:
        ExportError: timm knows neither such a family nor such a model.
    """
    names = _variants(wanted)
    started = time.monotonic()
    counted: list[tuple[float, str, int, tuple[int, int, int]]] = []
    likely = sorted(names, key=_likely)[:_NUM_BUILT]
    for name in likely:
        if counted and time.monotonic() - started > _BUDGET_S:
            break
        measured = _count(name, num_classes=num_classes)
        if measured is not None:
            parameters, size = measured
            counted.append((parameters * size[1] * size[2], name, parameters, size))
    if not counted:
        raise ExportError(f"timm builds none of {', '.join(likely)} as a classifier of RGB images")
    _, model, parameters, size = min(counted)
    args: dict[str, Any] = {}
    if parameters > _LARGEST and (shallow := _count(model, num_classes=num_classes, args=_SHALLOW)):
        args, (parameters, size) = dict(_SHALLOW), shallow
    return Choice(
        family=wanted,
        model=model,
        num_parameters=parameters,
        input_size=size,
        num_built=len(counted),
        num_variants=len(names),
        args=args,
    )


def _modules() -> dict[str, Sequence[str]]:
    import timm

    return {
        module: timm.list_models(module=module)
        for module in timm.list_modules()
        if timm.list_models(module=module)
    }


def _variants(wanted: str) -> list[str]:
    import timm

    for module, prefixes in SPLIT_MODULES.items():
        if wanted in prefixes:
            names = [name for name in timm.list_models(module=module) if name.startswith(wanted)]
            return _real(names)
    if wanted in timm.list_modules() and timm.list_models(module=wanted):
        return _real(timm.list_models(module=wanted))
    if timm.is_model(wanted):
        return [wanted]
    raise ExportError(
        f"timm has neither a module nor a model {wanted!r}; timm.list_modules() has the modules"
    )


def _real(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("test_")] or list(names)


def _likely(name: str) -> tuple[int, int, str]:
    """Sorts small variants first: by the words of their names, then by the numbers in them."""
    rank = next((i for i, pattern in enumerate(_SMALL) if re.search(pattern, name)), len(_SMALL))
    return rank, sum(int(digits) for digits in re.findall(r"\d+", name)), name


def _count(
    name: str, *, num_classes: int, args: Mapping[str, Any] | None = None
) -> tuple[int, tuple[int, int, int]] | None:
    """(parameters, input size), or None for what is no RGB classifier or cannot be built without memory."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=num_classes, **(args or {}))
    except Exception:  # noqa: BLE001 - some models compute while they are built; others of the family do not
        return None
    if getattr(model, "num_classes", num_classes) != num_classes:
        # An encoder (gemma4_vit's `_enc`): its answers are tokens.
        return None
    size = tuple(model.pretrained_cfg.get("input_size", (3, 224, 224)))
    return sum(p.numel() for p in model.parameters()), (int(size[0]), int(size[1]), int(size[2]))
