"""Torch stays out of the pipeline's process, also where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

from isthmus.tfx_pipeline.imports import torch_kept_out


def test_torch_is_not_there_inside_and_is_again_outside() -> None:
    before = list(sys.meta_path)
    with torch_kept_out(), pytest.raises(ModuleNotFoundError, match="stays out"):
        importlib.import_module("torch")
    assert sys.meta_path == before
    assert importlib.util.find_spec("torch") is not None


def test_loading_the_pipeline_does_not_load_torch() -> None:
    code = """
import sys
from isthmus.tfx_pipeline.imports import torch_kept_out
with torch_kept_out():
    import isthmus.tfx_pipeline.pipeline, isthmus.tfx_pipeline.runner, isthmus.tfx_pipeline.story
print("tensorflow" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip().splitlines()[-1] == "True False"


def test_what_the_command_line_imports_is_light() -> None:
    code = """
import sys
import isthmus.tfx_pipeline.config, isthmus.tfx_pipeline.errors, isthmus.tfx_pipeline.run
print(sorted({"tensorflow", "tfx", "apache_beam", "mlflow", "numpy", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
