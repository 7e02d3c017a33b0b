"""The rules of the house: who may import whom, what a folder may hold, how long a module may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Folder of each part, and its import name.
PARTS = {
    "cli": "isthmus.cli",
    "training": "isthmus.training",
    "export": "isthmus.export",
    "tfx_pipeline": "isthmus.tfx_pipeline",
    "serving": "isthmus.serving",
    "mlflow/lineage": "isthmus.lineage",
}

TORCH = {"torch", "torchvision", "timm"}
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "onnx2tf", "tensorflow_serving", "ai_edge_litert"}
TFX = {
    "tfx",
    "tfx_bsl",
    "tensorflow_model_analysis",
    "tensorflow_data_validation",
    "apache_beam",
    "ml_metadata",
}
HEAVY = TORCH | TENSORFLOW | TFX | {"mlflow", "numpy", "matplotlib", "sklearn", "onnx", "onnxruntime", "grpc"}

#: What no module below a folder may import; the longest folder that fits a module rules it.
FORBIDDEN_LIBRARIES = {
    "cli": HEAVY,
    "training": TENSORFLOW | TFX,
    "export": TORCH | TENSORFLOW | TFX,
    "export/torch_half": TENSORFLOW | TFX,
    "export/tf_half": TORCH | TFX,
    "tfx_pipeline": TORCH | {"onnx2tf", "onnxruntime"},
    "serving": TORCH | TFX | {"mlflow", "onnx", "onnxruntime"},
    "mlflow/lineage": TORCH | TENSORFLOW | TFX,
}

#: Modules of the lowest layer, which any part may import: the standard library and model-signing. The server and the
#: registry must agree on what a valid signature is, so there is one piece of code that says so.
LOWEST = {"isthmus.lineage.signing"}

#: Which other parts a part may import.
ALLOWED_PARTS = {
    "isthmus.cli": set(PARTS.values()),
    "isthmus.training": {"isthmus.lineage"},
    "isthmus.export": {"isthmus.lineage", "isthmus.serving"},
    "isthmus.tfx_pipeline": {"isthmus.export", "isthmus.lineage", "isthmus.serving"},
    "isthmus.serving": set(),
    "isthmus.lineage": {"isthmus.export"},
}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def modules(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def all_modules() -> list[Path]:
    return [path for folder in PARTS for path in modules(folder)]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted module) of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _is_lowest(module: str) -> bool:
    return module in LOWEST or module.rpartition(".")[0] in LOWEST


def test_the_lowest_layer_stands_on_itself() -> None:
    """What the server takes from the lineage part must not bring the rest of it along."""
    below = {f"isthmus.lineage.{name}" for name in ("config", "errors", "files", "signing")}
    for module in below:
        path = ROOT / "mlflow/lineage" / f"{module.rpartition('.')[2]}.py"
        for line, name in imported(path):
            if name.startswith("isthmus."):
                assert name.rpartition(".")[0] in below, f"{path}:{line} imports {name}"


def part_of(path: Path) -> str:
    return next(name for folder, name in PARTS.items() if path.is_relative_to(ROOT / folder))


@pytest.mark.parametrize("path", all_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_part_may(path: Path) -> None:
    folder = max((f for f in FORBIDDEN_LIBRARIES if path.is_relative_to(ROOT / f)), key=len)
    part = part_of(path)
    for line, module in imported(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert module.split(".")[0] not in FORBIDDEN_LIBRARIES[folder], where
        if module.startswith("isthmus."):
            other = ".".join(module.split(".")[:2])
            assert other == part or other in ALLOWED_PARTS[part] or _is_lowest(module), where


@pytest.mark.parametrize("half", ["torch_half", "tf_half"])
def test_only_a_half_itself_imports_that_half(half: str) -> None:
    """The boundary between the halves is files, which is what lets each run in a container of its own."""
    for path in all_modules():
        if not path.is_relative_to(ROOT / "export" / half):
            assert not [m for _, m in imported(path) if m.startswith(f"isthmus.export.{half}")], path


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(function) is None:
        return 0
    text = function.body[0]
    return (text.end_lineno or text.lineno) - text.lineno + 1


@pytest.mark.parametrize("path", all_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for path in all_modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_drawer_modules() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in all_modules() if path.name in drawers]


def test_folders_that_would_hide_a_package_have_no_init() -> None:
    assert not (ROOT / "mlflow/__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not (ROOT / "isthmus").exists()


def run(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_import_mlflow_is_the_real_one(tmp_path: Path) -> None:
    """From the repository's root, where the folder mlflow/ lies: by -c, by -m, by a script and by pytest."""
    show = "import mlflow; print(mlflow.__file__)"
    probe = tmp_path / "probe.py"
    probe.write_text(show)
    test = tmp_path / "test_probe.py"
    test.write_text("def test_it():\n    import mlflow\n    assert 'site-packages' in mlflow.__file__\n")
    assert "site-packages" in run("-c", show)
    assert "site-packages" in run(str(probe))
    assert "mlflow, version" in run("-m", "mlflow", "--version")
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(test))


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from isthmus.cli.main import main
try:
    main(["--help"])
except SystemExit:
    print(*sorted({module.split(".")[0] for module in sys.modules}))
"""
    loaded = set(run("-c", program).splitlines()[-1].split())
    assert "isthmus" in loaded
    assert not loaded & (HEAVY | {"pydantic", "yaml"})
