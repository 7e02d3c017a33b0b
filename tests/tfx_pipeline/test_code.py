"""What a change of code, or of the server that is asked, runs again."""

from __future__ import annotations

from pathlib import Path

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
