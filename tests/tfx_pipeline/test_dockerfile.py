"""tfx_pipeline/Dockerfile, as far as that goes without a registry: its bases, what it copies, who it runs as."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
from pathlib import Path

import pytest

from isthmus.tfx_pipeline.container import COMMAND

ROOT = Path(__file__).parents[2]
BASE = "python:3.12-slim-trixie"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of every line of the Dockerfile."""
    text = (ROOT / "tfx_pipeline" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(arguments.split())) for name, arguments in split]


def copied(instructions: list[tuple[str, str]]) -> list[str]:
    """The sources in the repository that are copied."""
    sources = []
    for name, arguments in instructions:
        if name == "COPY" and not arguments.startswith("--from="):
            sources += arguments.split()[:-1]
    return sources


def stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """{stage: its instructions, FROM first}."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions:
        if name == "FROM":
            found[arguments.rsplit(" AS ", maxsplit=1)[1]] = []
        found[list(found)[-1]].append((name, arguments))
    return found


def test_it_starts_from_debian_13_and_installs_without_the_compatibility_module(
    instructions: list[tuple[str, str]],
) -> None:
    bases = [arguments.split(" AS ")[0] for name, arguments in instructions if name == "FROM"]
    assert set(bases) == {BASE, "base"}
    assert not any("glibc.py" in arguments for name, arguments in instructions if name == "RUN")


def test_the_last_stage_has_no_compiler_and_is_not_root(instructions: list[tuple[str, str]]) -> None:
    found = stages(instructions)
    assert list(found)[-1] == "pipeline"
    assert any("g++" in arguments for _, arguments in found["build"])
    later = [line for stage in ("base", "dataflow", "pipeline") for line in found[stage]]
    assert not any("apt-get" in arguments for _, arguments in later)
    assert [arguments for name, arguments in later if name == "USER"] == ["65532:65532"]


def test_every_source_exists_and_reaches_the_builder(instructions: list[tuple[str, str]]) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = copied(instructions)
    assert "*" in rules
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    assert allowed == set(sources), "something is sent to the builder that nothing copies"


def test_the_whole_package_is_copied(instructions: list[tuple[str, str]]) -> None:
    """setup.cfg lists every package; one that is missing would fail the build."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = [
        line.split("=")[1].strip() for line in setup["options"]["package_dir"].split("\n") if line.strip()
    ]
    sources = copied(instructions)
    assert [f for f in folders if not any(f == s or f.startswith(f"{s}/") for s in sources)] == []


def test_what_is_installed_is_the_lock(instructions: list[tuple[str, str]]) -> None:
    (install,) = [
        arguments for name, arguments in instructions if name == "RUN" and "[pipeline]" in arguments
    ]
    assert "--constraint requirements.lock" in install
    assert "--compile-bytecode" in install


def test_dataflow_starts_the_beam_that_is_installed(instructions: list[tuple[str, str]]) -> None:
    (locked,) = re.findall(r"^apache-beam==([0-9.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    dataflow = stages(instructions)["dataflow"]
    assert (
        f"--from=apache/beam_python3.12_sdk:{locked} /opt/apache/beam /opt/apache/beam"
        in dict(dataflow)["COPY"]
    )
    assert json.loads(dict(dataflow)["ENTRYPOINT"]) == ["/opt/apache/beam/boot"]


def test_the_tasks_command_is_on_its_path(instructions: list[tuple[str, str]]) -> None:
    """The compiled pipeline says `python`: that must be the environment's, not the base image's."""
    assert COMMAND[0] == "python"
    (env,) = [arguments for name, arguments in instructions if name == "ENV"]
    assert "PATH=/opt/isthmus/bin:$PATH" in env
