"""OpenTelemetry traces: a collector of our own takes what a server sends, and reads the protobuf."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from isthmus.serving import grpc_messages, tracing
from isthmus.serving.client import GrpcClient
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.process import ServerProcess
from isthmus.serving.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP/HTTP receiver on loopback."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                content = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def wait_for(self, num_spans: int) -> list[Any]:
        """That many spans, in the order of their ends."""
        deadline = time.monotonic() + 30
        while len(self.spans) < num_spans:
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.05)
        return self.spans

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector."""
    collector = Collector()
    yield collector
    collector.close()


def facts(span: Any) -> dict[str, Any]:
    """The attributes of a span."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_spans_of_both_wires(models_root: Path, collector: Collector) -> None:
    address = f"http://127.0.0.1:{collector.server.server_port}"
    with ServerProcess("half", models_root / "half_plus_n", flags=[f"--otlp_endpoint={address}"]) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = grpc_messages.predict_request(
                "half", {"x": np.ones(4, np.float32)}, "", None, None, ()
            ).SerializeToString()
            channel.unary_unary(grpc_messages.PREDICT.path)(
                request, metadata=[("traceparent", PARENT)], timeout=30
            )
        with GrpcClient(port=server.grpc_port) as client, pytest.raises(RequestError):
            client.predict("nope", {"x": [1.0]})
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
        for body in ('{"instances": [1.0, 2.0]}', "{"):
            connection.request("POST", "/v1/models/half/versions/3:predict", body, {"traceparent": PARENT})
            json.loads(connection.getresponse().read())
        connection.request("GET", "/v1/models/half")
        connection.getresponse().read()
        connection.close()
        over_grpc, missing, over_rest, broken = collector.wait_for(4)
    assert over_grpc.name == "tensorflow.serving.PredictionService/Predict"
    expected = {
        "isthmus.model": "half",
        "isthmus.version": 3,
        "isthmus.signature": "serving_default",
        "isthmus.status": "OK",
    }
    assert facts(over_grpc) == expected | {
        "isthmus.batch": 4,
        "rpc.system": "grpc",
        "rpc.service": "tensorflow.serving.PredictionService",
        "rpc.method": "Predict",
        "rpc.grpc.status_code": 0,
    }
    assert over_rest.name == "POST :predict"
    assert facts(over_rest) == expected | {
        "isthmus.batch": 2,
        "http.request.method": "POST",
        "url.path": "/v1/models/half/versions/3:predict",
        "http.response.status_code": 200,
    }
    for span in (over_grpc, over_rest, broken):
        assert span.trace_id.hex() == PARENT.split("-")[1]
        assert span.parent_span_id.hex() == PARENT.split("-")[2]
        assert span.end_time_unix_nano > span.start_time_unix_nano
    assert not missing.parent_span_id
    assert (facts(missing)["isthmus.status"], facts(missing)["rpc.grpc.status_code"]) == ("NOT_FOUND", 5)
    assert facts(broken)["http.response.status_code"] == 400


def test_a_collector_that_is_gone_costs_nothing_but_spans(models_root: Path) -> None:
    flags = ["--otlp_endpoint=http://127.0.0.1:1"]
    with (
        ServerProcess("half", models_root / "half_plus_n", flags=flags) as server,
        GrpcClient(port=server.grpc_port) as client,
    ):
        assert [client.predict("half", {"x": [1.0]})["y"].tolist() for _ in range(20)] == [[3.5]] * 20
    assert not server.is_alive()


def test_refusals() -> None:
    with pytest.raises(ServingError, match="--otlp_endpoint=localhost:4318: give the collector's address"):
        Tracing("localhost:4318", 1.0)
    with pytest.raises(ServingError, match="--otlp_sampling_rate must lie between 0 and 1; got 2"):
        Tracing("http://localhost:4318", 2.0)


def test_without_a_span_nothing_is_annotated() -> None:
    tracing.annotate(model="m", batch=1)
