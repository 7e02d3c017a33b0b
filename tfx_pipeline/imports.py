"""Importing TFX where torch is installed too.

Beam's `apache_beam.ml.inference`, which TFX imports, takes torch along when it is there; torch and TensorFlow in
one process fight over LLVM's options, and cost seconds and hundreds of megabytes. Beam does without it, too.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
from collections.abc import Iterator
from typing import Any


class _NoTorch(importlib.abc.MetaPathFinder):
    """Answers the question for torch as an environment without it does."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:  # noqa: ARG002
        if fullname == "torch":
            raise ModuleNotFoundError("torch stays out of a process that holds tensorflow", name="torch")


@contextlib.contextmanager
def torch_kept_out() -> Iterator[None]:
    """While inside, `import torch` fails as if it were not installed.

    with torch_kept_out():
        import tfx.components
    """
    finder = _NoTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
