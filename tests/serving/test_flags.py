"""tensorflow_model_server's command line."""

import dataclasses
from pathlib import Path

import pytest

from isthmus.serving import flags
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import ServingError
from isthmus.serving.loading import session_options


def test_defaults() -> None:
    assert flags.parse([]) == ServingConfig()


def test_every_field_is_a_flag() -> None:
    for field in dataclasses.fields(ServingConfig):
        assert f"--{field.name}" in flags.help_text()


@pytest.mark.parametrize("spelling", [["--port=9000"], ["--port", "9000"]])
def test_value(spelling: list[str]) -> None:
    assert flags.parse(spelling).port == 9000


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--enable_model_warmup", True),
        ("--enable_model_warmup=true", True),
        ("--enable_model_warmup=false", False),
        ("--enable_model_warmup=0", False),
    ],
)
def test_boolean(argument: str, value: bool) -> None:
    assert flags.parse([argument]).enable_model_warmup is value


def test_paths() -> None:
    config = flags.parse(["--model_base_path=/models/m", "--model_config_file=/m.config"])
    assert (config.model_base_path, config.model_config_file) == (Path("/models/m"), Path("/m.config"))


def test_an_empty_path_is_no_path() -> None:
    """As scripts give flags whose variable is not set."""
    empty = ["--model_config_file=", "--ssl_config_file=", "--model_base_path", "", "--tune_output="]
    assert flags.parse(empty) == ServingConfig()


@pytest.mark.parametrize("value", ["false", "False", "0", ""])
def test_an_unsupported_flag_may_be_switched_off(value: str) -> None:
    assert flags.parse([f"--prefer_tflite_model={value}", "--port=1"]).port == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--use_tflite_model"], "--use_tflite_model of tensorflow_model_server is not supported"),
        (["--use_tflite_model=true"], "--use_tflite_model of tensorflow_model_server is not supported"),
        (["--platform_config_file=x"], "--platform_config_file of tensorflow_model_server is not supported"),
        (["--no_such_flag=1"], "unknown argument: --no_such_flag=1; .*--help.* lists the flags"),
        (["--por=1"], "unknown argument: --por=1"),
        (["--port=x"], "argument --port: invalid int value: 'x'"),
        (["--enable_model_warmup=maybe"], "'maybe' is neither true nor false"),
        (["digits"], "unknown argument: digits"),
    ],
)
def test_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(ServingError, match=text):
        flags.parse(arguments)


@pytest.mark.parametrize(
    ("session", "intra_op", "inter_op", "threads"),
    [(0, 0, 0, (0, 0)), (3, 0, 0, (3, 3)), (3, 2, 0, (2, 0)), (3, 0, 1, (0, 1)), (0, 2, 1, (2, 1))],
)
def test_threads_of_a_session(session: int, intra_op: int, inter_op: int, threads: tuple[int, int]) -> None:
    """One of the particular flags switches the general one off for both, as in the original."""
    config = ServingConfig(
        tensorflow_session_parallelism=session,
        tensorflow_intra_op_parallelism=intra_op,
        tensorflow_inter_op_parallelism=inter_op,
    )
    options = session_options(config)
    assert (options.intra_op_threads, options.inter_op_threads) == threads


def test_no_flag_is_both_supported_and_refused() -> None:
    assert not flags.UNSUPPORTED.keys() & {field.name for field in dataclasses.fields(ServingConfig)}


def test_flags_of_our_own_are_told_apart() -> None:
    """Also one whose mark says what tensorflow_model_server does instead."""
    as_there, _, rest = flags.markdown().partition("### Of the embedded server alone")
    own, _, refused = rest.partition("### Refused by name")
    for name in ("host", "reload_config_from", "drain_seconds"):
        assert f"| `--{name}` |" in own
    assert "| `--port` |" in as_there
    assert "not in tensorflow_model_server" not in as_there + refused


def test_the_page_has_every_flag_as_it_is() -> None:
    """docs/serving.md holds `python -m isthmus.serving.flags`' output between its two marks."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    _, _, rest = page.partition("<!-- flags -->\n")
    shown, _, _ = rest.partition("<!-- end of flags -->")
    assert shown == flags.markdown()
    for name in [field.name for field in dataclasses.fields(ServingConfig)] + [*flags.UNSUPPORTED]:
        assert f"| `--{name}` |" in shown
