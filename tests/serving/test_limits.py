"""A server with every limit low, TLS on REST and an API token; and both clients against it."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from isthmus.serving.client import (
    NO_RETRIES,
    AsyncClient,
    AsyncGrpcClient,
    AsyncRestClient,
    GrpcClient,
    RestClient,
)
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.process import ServerProcess
from isthmus.serving.status import Code

TOKEN = "let-me-in"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Limited:
    """The server, and what a client must know."""

    server: ServerProcess
    trust: ssl.SSLContext

    def connect(self) -> http.client.HTTPSConnection:
        """A connection to the REST port."""
        return http.client.HTTPSConnection("127.0.0.1", self.server.rest_port, timeout=10, context=self.trust)

    def status_of(self, raw: bytes) -> bytes:
        """The status line that answers these bytes, with none sent after them."""
        with (
            socket.create_connection(("127.0.0.1", self.server.rest_port), timeout=10) as plain,
            self.trust.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
        ):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                stream.sendall(raw)
            return stream.recv(4096).partition(b"\r\n")[0]

    def rest(self, token: str | None = TOKEN) -> RestClient:
        """A REST client."""
        return RestClient(port=self.server.rest_port, tls=self.trust, token=token, retry=NO_RETRIES)

    def grpc(self, token: str | None = TOKEN) -> GrpcClient:
        """A gRPC client."""
        return GrpcClient(port=self.server.grpc_port, token=token, retry=NO_RETRIES, timeout_s=10)


@pytest.fixture(scope="module")
def limited(
    models_root: Path, tmp_path_factory: pytest.TempPathFactory, self_signed: tuple[str, str]
) -> Iterator[Limited]:
    """The server."""
    folder = tmp_path_factory.mktemp("limits")
    key, certificate = (text.replace("\n", "\\n") for text in self_signed)
    (folder / "ssl.config").write_text(f'server_key: "{key}"\nserver_cert: "{certificate}"\n')
    (folder / "tokens").write_text(f"{TOKEN}\n")
    flags = [
        f"--rest_ssl_config_file={folder / 'ssl.config'}",
        f"--api_token_file={folder / 'tokens'}",
        "--enable_grpc_healthcheck_service",
        "--reload_config_from=nowhere",
        "--max_request_bytes=100000",
        "--max_image_pixels=1000",
        "--http_max_head_bytes=2000",
        "--http_head_timeout_seconds=1",
        "--http_body_timeout_seconds=1",
    ]
    with ServerProcess("echo", models_root / "echo", flags=flags) as server:
        trust = ssl.create_default_context(cadata=self_signed[1])
        yield Limited(server, trust)


def test_a_token_is_needed(limited: Limited) -> None:
    for client in (limited.rest(), limited.grpc()):
        with client:
            assert client.status("echo")[0].state == "AVAILABLE"
    for token in (None, "wrong"):
        for client in (limited.rest(token), limited.grpc(token)):
            with client, pytest.raises(RequestError, match="a valid API token is needed") as caught:
                client.status("echo")
            assert caught.value.code is Code.UNAUTHENTICATED
    with grpc.insecure_channel(f"127.0.0.1:{limited.server.grpc_port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10) == b"\x08\x01"


def test_reload_is_refused(limited: Limited) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{limited.server.grpc_port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(
                request, timeout=10, metadata=[("authorization", f"Bearer {TOKEN}")]
            )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_plain_http_is_refused(limited: Limited) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", limited.server.rest_port, timeout=10)
    plain.request("GET", "/v1/models/echo")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.getresponse()
    plain.close()


def test_message_size(limited: Limited) -> None:
    big = np.zeros(30_000, np.float32)
    with limited.grpc() as client, pytest.raises(RequestError) as caught:
        client.predict("echo", {"x": big}, signature="echo_float32")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    with (
        limited.rest() as rest,
        pytest.raises(RequestError, match="the body exceeds 100000 bytes") as refused,
    ):
        rest.request("POST", "/v1/models/echo:predict", b" " * 100_001)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    for _ in range(20):
        chunks = (b" " * 50_000 for _ in range(3))
        with contextlib.closing(limited.connect()) as connection:
            connection.request("POST", "/v1/models/echo:predict", chunks, BEARER, encode_chunked=True)
            assert connection.getresponse().status == 413


def test_header_size(limited: Limited) -> None:
    start = b"GET /v1/models/echo HTTP/1.1\r\nhost: x\r\n"
    assert b" 431 " in limited.status_of(start + b"a: " + b"b" * 2000 + b"\r\n\r\n")
    assert b" 431 " in limited.status_of(start + b"a: " + b"b" * 100_000)
    assert b" 431 " in limited.status_of(b"GET /" + b"v" * 3000)
    assert b" 401 " in limited.status_of(start + b"a: " + b"b" * 1500 + b"\r\n\r\n")


def test_slow_clients(limited: Limited) -> None:
    started = time.monotonic()
    assert b" 408 " in limited.status_of(b"GET /v1/mod")
    assert b" 408 " in limited.status_of(b"")
    head = (
        f"POST /v1/models/echo:predict HTTP/1.1\r\ncontent-length: 9\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
    )
    assert b" 408 " in limited.status_of(head.encode() + b"{")
    assert time.monotonic() - started < 8


def test_a_connection_outlives_the_time_limits(limited: Limited) -> None:
    connection = limited.connect()
    for _ in range(3):
        connection.request("GET", "/v1/models/echo", headers=BEARER)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        time.sleep(0.6)
    time.sleep(1.0)
    connection.request("GET", "/v1/models/echo", headers=BEARER)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    "text", ["[" * 49_000, '{"a":' * 19_000, "[" * 900 + "]" * 900, '{"instances": ' + "[" * 500]
)
def test_json_depth(limited: Limited, text: str) -> None:
    started = time.monotonic()
    with limited.rest() as client, pytest.raises(RequestError) as caught:
        client.request("POST", "/v1/models/echo:predict", text.encode())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("wire", ["grpc", "rest"])
def test_image_pixels(limited: Limited, wire: str) -> None:
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x80\x00\x00\x00\x80\x00"
    with getattr(limited, wire)() as client:
        with pytest.raises(RequestError, match="an image of 1073741824 pixels exceeds the 1000 ") as caught:
            client.predict("echo", {"image_bytes": [b"fine", png]}, signature="echo_bytes")
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e",
        "..",
        "%00",
        "echo%2Fversions%2F7",
        "echo/labels/..%2F7",
        "a" * 1500,
    ],
)
def test_names_are_not_paths(limited: Limited, name: str) -> None:
    connection = limited.connect()
    connection.request("GET", f"/v1/models/{name}", headers=BEARER)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    # A status request ignores its label, as the original does.
    assert response.status == (200 if "labels" in name else 404), content


# ---- the clients' batches ----


@pytest.mark.parametrize("wire", ["grpc", "rest"])
def test_predict_images(limited: Limited, wire: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.bin" for index in range(7)]
    for index, file in enumerate(files):
        file.write_bytes(bytes([255, index]))
    images = [*files[:5], str(files[5]), files[6].read_bytes()]
    with getattr(limited, wire)() as client:
        answer = client.predict_images("echo", images, batch_size=3, signature="echo_bytes")
        assert answer["image_bytes"].tolist() == [bytes([255, index]) for index in range(7)]
        with pytest.raises(
            ServingError, match=r"signature 'echo_float32' has 0 string inputs \(x \(float\)\)"
        ):
            client.predict_images("echo", images, signature="echo_float32")
        with pytest.raises(ServingError, match=r"no signature 'nope'; it has division, echo_"):
            client.predict_images("echo", images, signature="nope")
        with pytest.raises(ServingError, match=r"cannot read /nope\.png: No such file"):
            client.predict_images("echo", ["/nope.png"], signature="echo_bytes")


@pytest.mark.parametrize("wire", ["grpc", "rest"])
def test_async_client(limited: Limited, wire: str) -> None:
    def made() -> AsyncClient:
        if wire == "grpc":
            return AsyncGrpcClient(port=limited.server.grpc_port, token=TOKEN)
        return AsyncRestClient(port=limited.server.rest_port, tls=limited.trust, token=TOKEN)

    async def story() -> None:
        async with made() as client:
            images = [bytes([index]) for index in range(20)]
            answer = await client.predict_images("echo", images, batch_size=3, signature="echo_bytes")
            assert answer["image_bytes"].tolist() == images
            (status,) = await client.status("echo")
            assert (status.version, status.state) == (7, "AVAILABLE")
            with pytest.raises(RequestError) as caught:
                await client.predict("nope", {"x": [1.0]})
            assert caught.value.code is Code.NOT_FOUND

    asyncio.run(story())
