"""What setup.cfg maps is what the folders hold, and the built wheel carries all of it."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "cli": "isthmus.cli",
    "training": "isthmus.training",
    "export": "isthmus.export",
    "tfx_pipeline": "isthmus.tfx_pipeline",
    "serving": "isthmus.serving",
    "mlflow/lineage": "isthmus.lineage",
}


def packages_on_disk() -> dict[str, str]:
    """Import name of each package to its folder."""
    found = {}
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder)
            found[".".join([name, *below.parts])] = init.parent.relative_to(ROOT).as_posix()
    return found


@pytest.fixture(scope="module")
def options() -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["options"]


def test_setup_cfg_names_every_package(options: configparser.SectionProxy) -> None:
    assert set(options["packages"].split()) == set(packages_on_disk())


def test_setup_cfg_maps_every_package_to_its_folder(options: configparser.SectionProxy) -> None:
    mapped = dict(
        (part.strip() for part in line.split("="))
        for line in options["package_dir"].splitlines()
        if line.strip()
    )
    assert mapped == packages_on_disk()


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT],
        check=True,
        timeout=300,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".py")}
    expected = {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in packages_on_disk().items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert held == expected


def test_the_lock_pins_what_setup_cfg_asks_for() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    locked = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    )
    for extra, lines in config["options.extras_require"].items():
        for line in lines.splitlines():
            if "==" in line and not line.startswith("#"):
                name, version = line.split("==")
                assert locked[name] == version, f"{extra}: {name}"
