"""`isthmus doctor`: what this machine has, what is wrong, and the remedy, one line each."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from isthmus.tfx_pipeline import glibc

_GIB = 2**30
_FREE_GIB_WANTED = 5
_LIBRARIES = (
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "onnx2tf",
    "tensorflow",
    "tfx",
    "apache-beam",
    "mlflow",
    "protobuf",
    "numpy",
)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Finding:
    """One line of the report."""

    what: str
    """What was looked at, such as `glibc`."""
    found: str
    """What was found."""
    problem: str = ""
    """What is wrong with it; empty where nothing is."""
    remedy: str = ""
    """What to do about the problem."""

    def line(self) -> str:
        mark = "wrong" if self.problem else "ok   "
        tail = f": {self.problem}; {self.remedy}" if self.problem else ""
        return f"{mark}  {self.what:<16} {self.found}{tail}"

    def to_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def examine(*, home: Path, tracking_uri: str | None) -> list[Finding]:
    """Looks at everything a run needs. Imports no framework, so it also runs where one is broken."""
    return [
        _python(),
        _glibc(),
        _compiler(),
        *(_library(name) for name in _LIBRARIES),
        _gpu(),
        _disk(home),
        _tracking(home, tracking_uri),
    ]


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding(what="Python", found=f"{version} ({sys.executable})")
    return Finding(
        what="Python",
        found=version,
        problem="TFX 1.21 and this lock are for 3.11 and 3.12",
        remedy="install one of them and run `make env PYTHON=python3.12`",
    )


def _glibc() -> Finding:
    version = ".".join(map(str, glibc.system_glibc()))
    if not glibc.is_needed():
        return Finding(what="glibc", found=version)
    if glibc.loads(Path(sysconfig.get_path("platlib"))):
        return Finding(
            what="glibc", found=f"{version}, with the compatibility symbols for ml-metadata and TFDV"
        )
    return Finding(
        what="glibc",
        found=version,
        problem="ml-metadata and TFDV 1.21 need 2.39",
        remedy="run `make env`, which adds the compatibility symbols",
    )


def _compiler() -> Finding:
    path = shutil.which("g++")
    if path is None:
        return Finding(
            what="C++ compiler", found="none", problem="pyfarmhash is built from source", remedy="install g++"
        )
    first = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return Finding(what="C++ compiler", found=first[0] if first else path)


def _library(name: str) -> Finding:
    """Holds an installed library to what isthmus asks for; one that is absent may belong to another image."""
    wanted = [
        requirement
        for requirement in map(Requirement, metadata.requires("isthmus") or ())
        if requirement.name == name
    ]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        extras = sorted({str(r.marker).split('"')[1] for r in wanted if r.marker})
        brings = f"; isthmus[{extras[0]}] brings it" if extras else ""
        return Finding(what=name, found=f"not installed{brings}")
    for requirement in wanted:
        if not requirement.specifier.contains(version, prereleases=True):
            return Finding(
                what=name,
                found=version,
                problem=f"isthmus needs {requirement.specifier}",
                remedy="run `make env` (in the project) or reinstall isthmus",
            )
    return Finding(what=name, found=version)


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding(what="GPU", found="none; training runs on the CPU")
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode:
        return Finding(
            what="GPU",
            found="nvidia-smi fails",
            problem=answer.stdout.strip() or answer.stderr.strip(),
            remedy="repair the NVIDIA driver, or remove it to train on the CPU",
        )
    return Finding(what="GPU", found=answer.stdout.strip().replace("\n", "; "))


def _disk(home: Path) -> Finding:
    place = home.absolute()
    while not place.exists():
        place = place.parent
    free_gib = shutil.disk_usage(place).free / _GIB
    finding = Finding(what="disk", found=f"{free_gib:.0f} GiB free at {place}")
    if free_gib < _FREE_GIB_WANTED:
        return dataclasses.replace(
            finding, problem=f"less than {_FREE_GIB_WANTED} GiB", remedy="free some, or name another --home"
        )
    return finding


def _tracking(home: Path, tracking_uri: str | None) -> Finding:
    tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if tracking_uri is None or not tracking_uri.startswith(("http://", "https://")):
        store = tracking_uri or f"SQLite at {home / 'mlflow.db'}"
        there = "" if tracking_uri or (home / "mlflow.db").exists() else " (made by the first run)"
        return Finding(what="tracking", found=f"{store}{there}")
    try:
        with urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=5) as answer:
            status: Any = answer.status
    except (urllib.error.URLError, OSError) as error:
        return Finding(
            what="tracking",
            found=tracking_uri,
            problem=f"does not answer ({getattr(error, 'reason', error)})",
            remedy="start it, or leave --tracking-uri out to use the SQLite file",
        )
    return Finding(what="tracking", found=f"{tracking_uri} answers {status}")
