"""Who may talk to the server: TLS material, API tokens, and who may replace what is served."""

import hashlib
import hmac
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.model_config import read_text_proto
from isthmus.serving.private_messages import message_class
from isthmus.serving.status import Code

__all__ = ["RELOAD_FROM", "ApiTokens", "TlsMaterial", "TokenInterceptor", "check_reload_peer", "read_tls"]

RELOAD_FROM = ("loopback", "anywhere", "nowhere")
_REREAD_AFTER_S = 1.0
Refused = Callable[[str, bytes, grpc.ServicerContext], None]

# Probes carry no token and learn nothing but SERVING.
_OPEN_METHODS = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class TlsMaterial:
    """What a tensorflow.serving.SSLConfig file holds: PEM texts."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None
    """Certificates that clients' own must lead to; checked when verify_clients."""

    verify_clients: bool

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server's port."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_ca,
            require_client_auth=self.verify_clients,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """For an HTTP server's port: TLS 1.2 or newer.

        Raises:
            ServingError: key and certificate do not belong together, or are no PEM.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python reads the key from files only; this one never touches a disk.
        descriptor = os.memfd_create("tls")
        try:
            os.write(descriptor, self.certificate.rstrip() + b"\n" + self.key)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
            if self.client_ca is not None:
                context.load_verify_locations(cadata=self.client_ca.decode())
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise ServingError(f"the TLS key and certificates do not work together: {error}") from error
        finally:
            os.close(descriptor)
        if self.verify_clients:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read_tls(path: Path) -> TlsMaterial:
    """The SSLConfig in a file (text format, PEM contents inline); mutual with client_verify.

    Raises:
        ServingError: the file is unreadable or incomplete.
    """
    config = read_text_proto(path, message_class("tensorflow.serving.SSLConfig")())
    if not config.server_key or not config.server_cert:
        raise ServingError(f"{path}: server_key and server_cert must both hold PEM text")
    if config.client_verify and not config.custom_ca:
        raise ServingError(
            f"{path}: client_verify needs custom_ca, the certificates that clients are checked against"
        )
    return TlsMaterial(
        config.server_key.encode(),
        config.server_cert.encode(),
        config.custom_ca.encode() or None,
        config.client_verify,
    )


class ApiTokens:
    """The tokens in a file, one a line (# begins a comment); a changed file counts within a second.

    Only digests are kept and compared, in constant time.

    Raises:
        ServingError: the file is unreadable or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp, self._digests = self._read()
        self._looked = time.monotonic()

    def check(self, authorization: str | bytes | None) -> None:
        """Let an Authorization header (or gRPC metadata value) pass.

        Raises:
            RequestError: UNAUTHENTICATED unless it is `Bearer <one of the tokens>`.
        """
        self._reread()
        value = authorization.encode() if isinstance(authorization, str) else authorization or b""
        scheme, _, token = value.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise RequestError(
                Code.UNAUTHENTICATED, "a valid API token is needed: Authorization: Bearer <token>"
            )

    def _reread(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._looked < _REREAD_AFTER_S:
                return
            self._looked = now
            try:
                if self._path.stat().st_mtime_ns != self._stamp:
                    self._stamp, self._digests = self._read()
            except (OSError, ServingError):
                # Half-written, or gone for a moment: what was valid stays so.
                return

    def _read(self) -> tuple[int, list[bytes]]:
        try:
            stamp, lines = self._path.stat().st_mtime_ns, self._path.read_bytes().splitlines()
        except OSError as error:
            raise ServingError(f"cannot read the API tokens in {self._path}: {error.strerror}") from error
        tokens = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
        if not tokens:
            raise ServingError(f"{self._path} holds no API token; write one a line")
        return stamp, [hashlib.sha256(token).digest() for token in tokens]


class TokenInterceptor(grpc.ServerInterceptor):
    """Demands a token of every gRPC call but health checks.

    Args:
        tokens: those that are known.
        refused: told of each call that was not let in, before its end: the method's full name, and the message's bytes.
    """

    def __init__(self, tokens: ApiTokens, refused: Refused = lambda _method, _data, _context: None) -> None:
        self._tokens = tokens
        self._refused = refused

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The method's own handler, or one that ends the call UNAUTHENTICATED."""
        if not details.method.startswith(_OPEN_METHODS):
            try:
                self._tokens.check(dict(details.invocation_metadata).get("authorization"))
            except RequestError as error:
                return _refusal(error.message, details.method, self._refused)
        return continuation(details)


def _refusal(text: str, method: str, refused: Refused) -> Any:
    def refuse(request: bytes, context: grpc.ServicerContext) -> None:
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        refused(method, request, context)
        context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

    return grpc.unary_unary_rpc_method_handler(refuse)


def check_reload_peer(allowed_from: str, peer: str, what: str = "ReloadConfig") -> None:
    """Whether a ReloadConfig request (or another that only an operator may send) may be obeyed.

    Args:
        allowed_from: "loopback", "anywhere" or "nowhere".
        peer: gRPC's name of the caller, such as ipv4:127.0.0.1:5000, ipv6:%5B::1%5D:5000 or unix:/path.
        what: the kind of request, for the text.

    Raises:
        RequestError: PERMISSION_DENIED.
    """
    if allowed_from == "nowhere":
        raise RequestError(
            Code.PERMISSION_DENIED, f"this server obeys no {what} requests (--reload_config_from=nowhere)"
        )
    local = ("ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:")
    if allowed_from == "loopback" and not peer.startswith(local):
        raise RequestError(
            Code.PERMISSION_DENIED,
            f"{what} requests are obeyed from this machine only; --reload_config_from=anywhere changes that",
        )
