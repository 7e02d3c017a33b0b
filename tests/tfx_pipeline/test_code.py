"""What a change of code, or of the server that is asked, runs again."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from isthmus.tfx_pipeline.code import CODE, code_keys


def test_another_server_binary_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    without, first = code_keys(), code_keys(server_binary=str(binary))
    binary.write_text("#!/bin/sh\nexit 1\n")
    second = code_keys(server_binary=str(binary))
    assert without.keys() == CODE.keys()
    for one, other in ((without, first), (first, second)):
        assert {key for key in one if one[key] != other[key]} == {"ServerValidator"}


#: What decides no answer: texts of refusals, and settings, whose values travel as parameters.
NO_ANSWER = {
    "isthmus.export.errors",
    "isthmus.lineage.errors",
    "isthmus.tfx_pipeline.errors",
    "isthmus.tfx_pipeline.config",
}
#: Before it in the pipeline; the others that are cached have nobody's code but their own.
UPSTREAM = {
    "ExampleValidator": ("ImageExampleGen",),
    "DataReport": ("ImageExampleGen", "ExampleValidator"),
    "Evaluator": ("ImageExampleGen", "ChampionResolver"),
}
ALWAYS_RUN = {"ChampionResolver", "Pusher", "Registrar"}


@pytest.mark.parametrize("component", sorted(CODE.keys() - ALWAYS_RUN))
def test_nothing_that_a_component_imports_can_change_unseen(component: str) -> None:
    known = {module for name in (component, *UPSTREAM.get(component, ())) for module in CODE[name]}
    imported = {found for module in CODE[component] for found in imports_of(module)}
    unseen = {
        module
        for module in imported - known - NO_ANSWER
        if not any(module.startswith(f"{package}.") for package in known)
    }
    assert not unseen


def imports_of(module: str) -> set[str]:
    """Our modules that a module's text imports, anywhere in it; none for a package, which is hashed whole."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    if spec.submodule_search_locations is not None:
        return set()
    found = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isthmus"):
            for alias in node.names:
                found.add(_module_of(str(node.module), alias.name))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("isthmus")}
    return found


def _module_of(module: str, name: str) -> str:
    """`from module import name`: the module meant."""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{module}.{name}" if is_package and importlib.util.find_spec(f"{module}.{name}") else module
