"""Tokens and who may reload; TLS is tested with a server in test_limits.py."""

import os
from pathlib import Path

import pytest

from isthmus.serving import security
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.security import ApiTokens, check_reload_peer
from isthmus.serving.status import Code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two tokens."""
    path = tmp_path / "tokens"
    path.write_text("# clients\nalpha\n\n  beta  \n")
    return path


def is_let_in(tokens: ApiTokens, value: str | bytes | None) -> bool:
    """Whether the header passes."""
    try:
        tokens.check(value)
    except RequestError as error:
        return error.code is not Code.UNAUTHENTICATED
    return True


def test_tokens(path: Path) -> None:
    tokens = ApiTokens(path)
    for good in ("Bearer alpha", b"Bearer alpha", "bearer beta", "Bearer  beta"):
        assert is_let_in(tokens, good), good
    for bad in (
        None,
        "",
        "alpha",
        "Basic alpha",
        "Bearer",
        "Bearer ",
        "Bearer alphabeta",
        "Bearer # clients",
    ):
        assert not is_let_in(tokens, bad), bad


def test_a_changed_file_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "_REREAD_AFTER_S", 0.0)
    tokens = ApiTokens(path)
    path.write_text("gamma\n")
    os.utime(path, ns=(1, 1))
    assert not is_let_in(tokens, "Bearer alpha")
    assert is_let_in(tokens, "Bearer gamma")
    path.write_text("")
    assert is_let_in(tokens, "Bearer gamma")  # nothing to replace it by
    path.unlink()
    assert is_let_in(tokens, "Bearer gamma")


def test_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"cannot read the API tokens in .*: No such file"):
        ApiTokens(tmp_path / "nope")
    (tmp_path / "empty").write_text("# none\n")
    with pytest.raises(ServingError, match="holds no API token; write one a line"):
        ApiTokens(tmp_path / "empty")


@pytest.mark.parametrize(
    ("allowed_from", "peer", "allowed"),
    [
        ("loopback", "ipv4:127.0.0.1:50", True),
        ("loopback", "ipv6:%5B::1%5D:50", True),
        ("loopback", "unix:", True),
        ("loopback", "ipv4:10.0.0.1:50", False),
        ("anywhere", "ipv4:10.0.0.1:50", True),
        ("nowhere", "ipv4:127.0.0.1:50", False),
    ],
)
def test_reload_peer(allowed_from: str, peer: str, allowed: bool) -> None:
    if allowed:
        check_reload_peer(allowed_from, peer)
        return
    with pytest.raises(RequestError) as caught:
        check_reload_peer(allowed_from, peer)
    assert caught.value.code is Code.PERMISSION_DENIED
