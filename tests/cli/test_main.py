from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli import commands
from isthmus.cli.main import INTERRUPTED, main

ISTHMUS = Path(sys.executable).with_name("isthmus")
COMMANDS = ("train", "export", "pipeline", "serve", "registry", "lineage", "doctor")


def test_help_lists_every_command() -> None:
    text = subprocess.check_output([ISTHMUS, "--help"], text=True, timeout=60)
    for command in COMMANDS:
        assert f"\n    {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert "usage:" in subprocess.check_output([ISTHMUS, command, "--help"], text=True, timeout=60)


def test_an_unknown_argument_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--verbose"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: --verbose\n")


def test_the_server_takes_its_own_flags_and_refuses_them_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model_nam=digits"]) != 0
    assert "--model_nam" in capsys.readouterr().err


def test_nothing_to_export_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--home", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: nothing in {tmp_path}/checkpoints/digits yet; run `isthmus train` first, or name one\n"
    )
    assert not list(tmp_path.iterdir())


def test_an_interruption_says_that_the_command_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "doctor", interrupt)
    assert main(["doctor"]) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(arguments: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(commands, "doctor", bug)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["doctor"])


def test_a_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    monkeypatch.delitem(sys.modules, "isthmus.cli.doctor", raising=False)
    assert main(["doctor"]) == 1
    assert "packaging.requirements is not installed" in capsys.readouterr().err


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    recipe = Path(__file__).parents[2] / "recipes/digits.yaml"
    assert main(["train", "--config", str(recipe), "--home", str(file / "home")]) == 1
    assert capsys.readouterr().err == f"error: Not a directory: {file}/home/logs\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"'{ISTHMUS}' doctor | head -1", shell=True, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("ok     Python")
    assert done.stderr == ""
