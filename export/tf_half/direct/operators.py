"""The modules that hold the lowerings; importing one registers its operators."""

from __future__ import annotations

import importlib

_MODULES = (
    "activations",
    "arithmetic",
    "convolution",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "resizing",
    "shaping",
    "slicing",
    "unfolding",
)


def register_all() -> None:
    """Fill the registry."""
    for module in _MODULES:
        importlib.import_module(f"isthmus.export.tf_half.direct.{module}")
