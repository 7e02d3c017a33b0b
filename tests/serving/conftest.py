"""The models of the serving tests, written once per session in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

MODELS_SCRIPT = Path(__file__).parent / "models.py"


@pytest.fixture(scope="session")
def models_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with half_plus_two (TF1), half_plus_n (TF2, versions 1 to 3), echo (TF2) and models.config."""
    root = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(MODELS_SCRIPT), str(root)], check=True, timeout=300)
    return root
