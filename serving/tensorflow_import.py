"""Imports tensorflow without Keras: half the CPU of a server's start (4.0 s becomes 2.1 s with warm
bytecode).

`import tensorflow` imports keras (and with it scikit-learn, pandas, scipy) only to register its optimizers,
and goes on without when it is not installed. A process that runs graphs has no use for them. Keras stays
importable later.
"""

import importlib
import os
import sys

__all__ = ["import_tensorflow"]


def import_tensorflow() -> None:
    """Import tensorflow into this process; call it before anything else does.

    Its C++ loader would tell every step of every load on stderr; what is worth a line, the server says itself.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    if "keras" in sys.modules:
        importlib.import_module("tensorflow")
        return
    # None is the documented way to make an import fail.
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("tensorflow")
    finally:
        del sys.modules["keras"]
