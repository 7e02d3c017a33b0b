"""Rules that hold for every test."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_framework_a_process() -> object:
    """torch and TensorFlow fight in one process (both register LLVM's options), so no test run holds both."""
    yield
    assert not {"torch", "tensorflow"} <= set(sys.modules), "a test run imported torch and TensorFlow"
