"""Tokens, who may reload, mutual TLS over REST; TLS is tested with a server in test_limits.py and
test_monitoring.py."""

import os
import ssl
from pathlib import Path

import pytest

from isthmus.serving import security
from isthmus.serving.client import RestClient
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.metrics import Metrics
from isthmus.serving.rest_edge import RestEdge
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


def test_mutual_tls_over_rest(tmp_path: Path, self_signed: tuple[str, str]) -> None:
    """The port itself: a client without a certificate gets no answer, one with it does."""
    key, certificate = (text.replace("\n", "\\n") for text in self_signed)
    (tmp_path / "ssl.config").write_text(
        f'server_key: "{key}"\nserver_cert: "{certificate}"\ncustom_ca: "{certificate}"\nclient_verify: true\n'
    )
    for name, text in zip(("key.pem", "certificate.pem"), self_signed, strict=True):
        (tmp_path / name).write_text(text)
    config = ServingConfig(rest_api_port=0, rest_ssl_config_file=tmp_path / "ssl.config", drain_seconds=1)
    edge = RestEdge(config, metrics_path=None, metrics=Metrics())
    edge.start(lambda route, _body: f'{{"asked": "{route.model.name}"}}'.encode())
    try:
        trust = ssl.create_default_context(cadata=self_signed[1])
        with RestClient(port=edge.port, tls=trust) as stranger, pytest.raises(RequestError) as caught:
            stranger.request("GET", "/v1/models/half")
        assert caught.value.code is Code.UNAVAILABLE
        trust.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
        with RestClient(port=edge.port, tls=trust) as known:
            assert known.request("GET", "/v1/models/half") == b'{"asked": "half"}'
    finally:
        edge.stop()
