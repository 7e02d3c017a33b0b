"""The URL grammar, and what is answered to everything outside it."""

import gzip
import json
import socket
from typing import Any

import pytest

BODY = {"instances": [1.0]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/half_plus_two:predict",
        "/V1/Models/half_plus_two:predict",
        "/v1/models/half_plus_two/versions/123:predict",
        "/v1/models/half_plus_two/versions/00123:predict",
        "/v1/models/half%5Fplus%5ftwo:predict",
    ],
)
def test_predict_url(target: Any, path: str) -> None:
    answer = target.post(path, BODY)
    assert (answer.status, answer.json) == (200, {"predictions": [2.5]})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/half_plus_two/predict"),
        ("POST", "/v1/models/half_plus_two:PREDICT"),
        ("POST", "/v1/models/half_plus_two:explain"),
        ("POST", "/v1/models/:predict"),
        ("POST", "/v1/models/half_plus_two/versions/x:predict"),
        ("POST", "/v1/models/half_plus_two/versions/-1:predict"),
        ("POST", "/v1/models/half_plus_two/versions/1/labels/a:predict"),
        ("POST", "/v1/models/half_plus_two/labels/:predict"),
        ("POST", "/v1/models/half_plus_two:predict/"),
        ("POST", "/v1/models/half_plus_two:predict?x=1"),
        ("POST", "/v1/models/half_plus_two"),
        ("POST", "/v1/"),
        ("GET", "/v1/models/half_plus_two:predict"),
        ("GET", "/v1/models/half_plus_two/"),
        ("GET", "/v1/models/half_plus_two/metadata/"),
        ("GET", "/v1/models/half_plus_two/versions/"),
        ("GET", "/v1/models/half_plus_two/nothing"),
        ("GET", "/v1/nothing"),
        ("PUT", "/v1/models/half_plus_two:predict"),
        ("DELETE", "/v1/models/half_plus_two"),
        ("OPTIONS", "/v1/models/half_plus_two:predict"),
    ],
)
def test_malformed_request(target: Any, method: str, path: str) -> None:
    answer = target.request(method, path, json.dumps(BODY))
    assert (answer.status, answer.error) == (400, f"Malformed request: {method} {path}")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models/half_plus_two", "/models", "/favicon.ico"])
def test_other_paths_are_not_found(target: Any, path: str) -> None:
    answer = target.get(path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/html"
    assert b"<H1>Not Found</H1>" in answer.body


def test_version_beyond_64_bits(target: Any) -> None:
    answer = target.post(f"/v1/models/half_plus_two/versions/{2**63}:predict", BODY)
    assert answer.status == 400


def test_a_query_belongs_to_the_path(target: Any) -> None:
    answer = target.get("/v1/models/half_plus_two?x=1")
    assert (answer.status, answer.error) == (404, "Could not find any versions of model half_plus_two?x=1")


def test_unknown_model(target: Any) -> None:
    answer = target.post("/v1/models/nope:predict", BODY)
    assert (answer.status, answer.error) == (404, "Servable not found for request: Latest(nope)")


def test_unknown_version(target: Any) -> None:
    answer = target.post("/v1/models/half_plus_two/versions/50:predict", BODY)
    assert (answer.status, answer.error) == (
        404,
        "Servable not found for request: Specific(half_plus_two, 50)",
    )


def test_labels(target: Any) -> None:
    for label, expected in (("stable", 2.5), ("canary", 3.5)):
        answer = target.post(f"/v1/models/half_plus_n/labels/{label}:predict", BODY)
        assert answer.json == {"predictions": [expected]}
    assert target.post("/v1/models/half_plus_n:predict", BODY).json == {"predictions": [3.5]}


def test_unknown_label(target: Any) -> None:
    answer = target.post("/v1/models/half_plus_two/labels/nope:predict", BODY)
    assert (answer.status, answer.error) == (400, "Unrecognized servable version label: nope")


def test_label_of_a_version_that_is_not_there(target: Any) -> None:
    answer = target.post("/v1/models/half_plus_n/labels/missing:predict", BODY)
    assert (answer.status, answer.error) == (404, "Servable not found for request: Specific(half_plus_n, 9)")


def test_gzip_body(target: Any) -> None:
    body = gzip.compress(json.dumps(BODY).encode())
    answer = target.request("POST", "/v1/models/half_plus_two:predict", body, {"Content-Encoding": "gzip"})
    assert answer.json == {"predictions": [2.5]}


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(b'{"instances": [1.0]}')[:-9]])
def test_broken_gzip_body_reads_as_empty(target: Any, body: bytes) -> None:
    answer = target.request("POST", "/v1/models/half_plus_two:predict", body, {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error) == (400, "JSON Parse error: The document is empty")


def test_a_client_that_has_said_all_is_answered(target: Any) -> None:
    """As `nc -N` and `socat` close their half of the connection."""
    body = json.dumps(BODY)
    head = f"Host: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = f"POST /v1/models/half_plus_two:predict HTTP/1.1\r\n{head}{body}"
    with socket.create_connection((target.host, target.rest_port), timeout=30) as client:
        client.sendall(request.encode() * 2)
        client.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.endswith(b"[2.5\n    ]\n}")
