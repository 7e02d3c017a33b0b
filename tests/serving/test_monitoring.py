"""Prometheus' page, the admin port, and TLS: one server with all three."""

import asyncio
import http.client
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from isthmus.serving.admin import admin_application
from isthmus.serving.client import GrpcClient, RestClient
from isthmus.serving.errors import RequestError
from isthmus.serving.metrics import Metrics
from isthmus.serving.process import ServerProcess
from isthmus.serving.status import Code

X = np.array([1.0], np.float32)


@dataclass
class Monitored:
    """A server with TLS, Prometheus and an admin port, and the certificate to reach it with."""

    server: ServerProcess
    key: str
    certificate: str

    def get(self, port: int, path: str) -> tuple[int, str, str]:
        """Status, content type and text of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode(errors="surrogateescape")
        connection.close()
        return response.status, response.headers["content-type"], text


@pytest.fixture(scope="module")
def monitored(
    models_root: Path, tmp_path_factory: pytest.TempPathFactory, self_signed: tuple[str, str]
) -> Iterator[Monitored]:
    """The server."""
    folder = tmp_path_factory.mktemp("config")
    key, certificate = self_signed
    (folder / "monitoring.config").write_text("prometheus_config { enable: true path: '/metrics/here' }")
    escaped = [text.replace("\n", "\\n") for text in (key, certificate)]
    (folder / "ssl.config").write_text(
        f'server_key: "{escaped[0]}"\nserver_cert: "{escaped[1]}"\ncustom_ca: '
        f'"{escaped[1]}"\nclient_verify: true\n'
    )
    flags = [
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        f"--ssl_config_file={folder / 'ssl.config'}",
        "--admin_port=0",
    ]
    with ServerProcess("half", models_root / "half_plus_n", flags=flags) as server:
        yield Monitored(server, key, certificate)


def tls_client(monitored: Monitored, *, with_key: bool) -> GrpcClient:
    """A client that trusts the server, with or without a certificate of its own."""
    certificate, key = monitored.certificate.encode(), monitored.key.encode()
    own = {"private_key": key, "certificate_chain": certificate} if with_key else {}
    credentials = grpc.ssl_channel_credentials(certificate, **own)
    return GrpcClient(port=monitored.server.grpc_port, credentials=credentials, timeout_s=5)


def test_mutual_tls(monitored: Monitored) -> None:
    with tls_client(monitored, with_key=True) as client:
        assert client.predict("half", {"x": X})["y"].tolist() == [3.5]
    for client in (
        GrpcClient(port=monitored.server.grpc_port, timeout_s=5),
        tls_client(monitored, with_key=False),
    ):
        with client, pytest.raises(RequestError) as caught:
            client.predict("half", {"x": X})
        assert caught.value.code is Code.UNAVAILABLE


def test_metrics_of_requests(monitored: Monitored) -> None:
    with RestClient(port=monitored.server.rest_port) as client, tls_client(monitored, with_key=True) as other:
        client.predict("half", {"x": X})
        other.predict("half", {"x": X})
        for model, signature in (("nope", ""), ("half", "nope")):
            with pytest.raises(RequestError):
                client.request(
                    "POST", f"/v1/models/{model}:predict", f'{{"signature_name": "{signature}"}}'.encode()
                )
    status, content_type, page = monitored.get(monitored.server.rest_port, "/metrics/here")
    assert (status, content_type) == (200, "text/plain")
    assert monitored.get(monitored.server.rest_port, "/metrics/here?x=1") == (
        400,
        "text/plain",
        "Unexpected path: /metrics/here?x=1. Should be /metrics/here",
    )
    counted = dict(re.findall(r"^(\S+\{.*\}) (\S+)$", page, re.MULTILINE))
    assert int(counted[':tensorflow:serving:request_count{model_name="half",status="OK"}']) >= 2
    assert int(counted[':tensorflow:serving:request_count{model_name="half",status="INVALID_ARGUMENT"}']) == 1
    assert int(counted[':tensorflow:serving:request_count{model_name="nope",status="NOT_FOUND"}']) == 1
    for api, entrypoint in (("predict", "REST"), ("Predict", "GRPC")):
        labels = f'model_name="half",API="{api}",entrypoint="{entrypoint}"'
        count = int(counted[f":tensorflow:serving:request_latency_count{{{labels}}}"])
        assert count >= 1
        assert int(counted[f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}}']) == count
        assert f':tensorflow:serving:request_latency_bucket{{{labels},le="708235"}}' in counted
    assert (
        ':tensorflow:serving:runtime_latency_count{model_name="half",API="Predict",runtime="TF1"}' in counted
    )
    histogram = ":isthmus:serving:signature_latency_count"
    seen = {key: counted[key] for key in counted if key.startswith(histogram)}
    assert seen.keys() == {
        f'{histogram}{{model_name="half",signature_name="serving_default",API="{api}",entrypoint="{entrypoint}"}}'
        for api, entrypoint in (("predict", "REST"), ("Predict", "GRPC"))
    }
    loads = [key for key in counted if key.startswith(":tensorflow:cc:saved_model:load_attempt_count{")]
    assert [counted[key] for key in loads] == ["1"]
    assert 'half_plus_n/3",status="success"' in loads[0]


def test_a_model_name_that_is_no_utf8_does_not_end_the_pages(monitored: Monitored) -> None:
    for path in ("/v1/models/%ff", "/v1/models/%fe"):
        assert monitored.get(monitored.server.rest_port, path)[0] == 404
    assert monitored.server.admin_port is not None
    for port, path in (
        (monitored.server.rest_port, "/metrics/here"),
        (monitored.server.admin_port, "/metrics"),
    ):
        status, _, page = monitored.get(port, path)
        assert status == 200
        assert ':tensorflow:serving:request_count{model_name="?",status="NOT_FOUND"} 2' in page


def test_admin_pages(monitored: Monitored) -> None:
    port = monitored.server.admin_port
    assert port is not None
    assert monitored.get(port, "/healthz")[0::2] == (200, "ok\n")
    assert monitored.get(port, "/readyz")[0::2] == (200, "ok\n")
    assert "# TYPE :tensorflow:serving:request_count counter" in monitored.get(port, "/metrics")[2]
    assert monitored.get(port, "/v1/models/half")[0] == 404
    assert monitored.get(monitored.server.rest_port, "/healthz")[0] == 404


def test_readiness_names_what_is_missing() -> None:
    async def page(missing: list[str] | None) -> tuple[int, bytes]:
        sent: list[dict[str, object]] = []

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        application = admin_application(Metrics(), lambda: missing)
        await application({"type": "http", "method": "GET", "path": "/readyz"}, send, send)  # type: ignore[arg-type]
        return sent[0]["status"], sent[1]["body"]  # type: ignore[return-value]

    assert asyncio.run(page(None)) == (503, b"starting\n")
    assert asyncio.run(page(["digits"])) == (503, b"no version available of: digits\n")
    assert asyncio.run(page([])) == (200, b"ok\n")


def test_invented_model_names_do_not_fill_the_memory() -> None:
    metrics = Metrics()
    for number in range(5000):
        metrics.request(
            model=f"m{number}", api="Predict", entrypoint="GRPC", status="NOT_FOUND", duration_us=1
        )
    page = metrics.page()
    assert len(page.splitlines()) < 1100
    assert ':tensorflow:serving:request_count{model_name="(other)",status="NOT_FOUND"} 4000' in page


def test_label_values_are_escaped() -> None:
    metrics = Metrics()
    metrics.request(model='a"\\\n', api="Predict", entrypoint="GRPC", status="OK", duration_us=1)
    assert r'{model_name="a\"\\\n",status="OK"} 1' in metrics.page()
