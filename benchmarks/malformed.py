"""Malformed requests for a TensorFlow Serving API, seeded: a grammar of what clients get wrong, and real requests
with their bytes changed.

`rest_messages` and `grpc_messages` are endless; which answers are right is `soak.py`'s business.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isthmus.serving.wire_messages import message_class

APIS = "tensorflow_serving.apis."


@dataclass(frozen=True)
class RestMessage:
    """One HTTP request; raw ones are sent byte by byte as they are."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    raw: bytes = b""


@dataclass(frozen=True)
class GrpcMessage:
    """One call: the method's full name and the message's bytes."""

    method: str
    body: bytes


NUMBERS: list[Any] = [0, -1, 1.5, 1e300, -1e-300, 2**63, 2**64, -(2**63), 1e999, True, None]
WORDS = ["", "x", "ÿ", "\x00", "a" * 3000, "../../etc/passwd", "%2e%2e", "🙂", "serving_default", "y", "b64"]
BODIES = [
    b"",
    b"{",
    b"}",
    b"[]",
    b"null",
    b'{"instances": }',
    b'{"instances": [NaN, Infinity, -Infinity]}',
    b'{"instances": [1.0,]}',
    b'{"instances": 1, "inputs": 2}',
    b"\xff\xfe\x00",
    b"[" * 2000 + b"]" * 2000,
    b'{"instances": [' + b"[" * 700 + b"]" * 700 + b"]}",
    b'{"instances": [' + b"9" * 5000 + b"]}",
]
RAW = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST /v1/models/soak:predict HTTP/9.9\r\n\r\n",
    b"POST /v1/models/soak:predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/models/soak:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/models/soak:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    b"GET /v1/models/soak HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 400 + b"\r\n",
    b"GET /v1/models/soak HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def rest_messages(draw: random.Random) -> Iterator[RestMessage]:
    """What goes to the REST port."""
    while True:
        if draw.random() < 0.03:
            yield RestMessage("", "", {}, b"", raw=_mutated(draw, draw.choice(RAW)))
            continue
        headers = {"Content-Type": "application/json"}
        body = _body(draw)
        if draw.random() < 0.1:
            headers["Content-Encoding"] = draw.choice(["gzip", "GZIP", "br", "gzip, gzip"])
            body = draw.choice([gzip.compress(body), gzip.compress(body)[:-4], body])
        method = draw.choices(
            ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "FOO"], [80, 8, 3, 3, 2, 2, 2]
        )[0]
        yield RestMessage(method, _path(draw), headers, body)


def grpc_messages(draw: random.Random) -> Iterator[GrpcMessage]:
    """What goes to the gRPC port."""
    makers = {
        "PredictionService/Predict": _predict,
        "PredictionService/Classify": _examples,
        "PredictionService/Regress": _examples,
        "PredictionService/MultiInference": _multi_inference,
        "PredictionService/GetModelMetadata": _metadata,
        "ModelService/GetModelStatus": _metadata,
    }
    while True:
        name = draw.choices([*makers, "PredictionService/Nothing"], [60, 10, 10, 10, 5, 4, 1])[0]
        body = makers.get(name, _predict)(draw)
        if draw.random() < 0.5:
            body = _mutated(draw, body)
        yield GrpcMessage(f"/tensorflow.serving.{name}", body)


def _path(draw: random.Random) -> str:
    name = draw.choice(["soak", "soak", "soak", "nope", "", "%00", "so%61k", "a/b", ".."])
    where = draw.choice(
        [
            "",
            "",
            "",
            "/versions/1",
            "/versions/99999999999999999999",
            "/versions/" + "9" * 5000,
            "/versions/x",
            "/labels/l",
        ]
    )
    verb = draw.choice(
        [":predict"] * 6 + [":classify", ":regress", ":PREDICT", ":", "", "/metadata", ":x", "?q=1"]
    )
    start = draw.choice(["/v1/models/"] * 8 + ["/v1/", "/V1/MODELS/", "/v2/models/", "//v1/models/"])
    return start + name + where + verb


def _value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if depth > 4 or kind < 0.4:
        return draw.choice(NUMBERS)
    if kind < 0.55:
        return draw.choice(WORDS)
    if kind < 0.85:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(5))]
    keys = draw.sample(["x", "b64", "instances", "y", ""], draw.randrange(4))
    return {key: _value(draw, depth + 1) for key in keys}


def _body(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.15:
        return draw.choice(BODIES)
    good = json.dumps({"instances": [{"x": draw.random()} for _ in range(draw.randrange(1, 4))]}).encode()
    if kind < 0.55:
        return _mutated(draw, good)
    keys = draw.sample(
        ["instances", "inputs", "signature_name", "examples", "context", "zzz"], draw.randrange(1, 4)
    )
    return json.dumps({key: _value(draw) for key in keys}).encode()


def _mutated(draw: random.Random, data: bytes) -> bytes:
    """The bytes with some of them changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(changed) + 1)
        action = draw.randrange(5)
        if action == 0 and at < len(changed):
            changed[at] = draw.randrange(256)
        elif action == 1 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif action == 2:
            del changed[at : at + draw.randrange(1, 12)]
        elif action == 3:
            changed[at:at] = draw.randbytes(draw.randrange(1, 8))
        else:
            del changed[at:]
    return bytes(changed)


def _spec(draw: random.Random, spec: Any) -> None:
    spec.name = draw.choice(["soak", "soak", "soak", "nope", "", "../soak", "a" * 3000])
    spec.signature_name = draw.choice(["", "", "serving_default", "nope", "\x00"])
    choice = draw.random()
    if choice < 0.1:
        spec.version.value = draw.choice([0, -1, 1, 2**63 - 1])
    elif choice < 0.2:
        spec.version_label = draw.choice(["", "stable", "../x"])


def _predict(draw: random.Random) -> bytes:
    request = message_class(APIS + "predict_pb2", "PredictRequest")()
    _spec(draw, request.model_spec)
    for alias in draw.sample(["x", "x", "y", "", "z" * 500], draw.randrange(1, 3)):
        tensor = request.inputs[alias]
        tensor.dtype = draw.choice([1, 1, 1, 0, 2, 7, 9, 14, 20, 21, 23, 101, 9999, -1])
        for _ in range(draw.choice([0, 1, 1, 1, 2, 70])):
            tensor.tensor_shape.dim.add().size = draw.choice([1, 1, 2, 0, -1, 2**40, 2**62, -(2**63)])
        tensor.tensor_shape.unknown_rank = draw.random() < 0.05
        tensor.float_val.extend(
            [draw.choice([1.0, 2.0, float("nan"), float("inf")])] * draw.choice([0, 1, 1, 3])
        )
        if draw.random() < 0.2:
            tensor.tensor_content = draw.randbytes(draw.choice([1, 4, 5, 16]))
        if draw.random() < 0.1:
            tensor.string_val.append(draw.randbytes(9))
    request.output_filter.extend(draw.sample(["y", "y", "nope", ""], draw.choice([0, 0, 1, 2])))
    return bytes(request.SerializeToString())


def _examples(draw: random.Random) -> bytes:
    request = message_class(APIS + "classification_pb2", "ClassificationRequest")()
    _spec(draw, request.model_spec)
    _fill_input(draw, request.input)
    return bytes(request.SerializeToString())


def _fill_input(draw: random.Random, target: Any) -> None:
    kind = draw.choice(["example_list", "example_list_with_context", ""])
    if not kind:
        return
    getattr(target, kind).SetInParent()
    for _ in range(draw.randrange(3)):
        features = getattr(target, kind).examples.add().features.feature
        features["x"].float_list.value.extend([draw.random()] * draw.randrange(3))
        if draw.random() < 0.3:
            features["x"].bytes_list.value.append(draw.randbytes(4))


def _multi_inference(draw: random.Random) -> bytes:
    request = message_class(APIS + "inference_pb2", "MultiInferenceRequest")()
    for _ in range(draw.randrange(4)):
        task = request.tasks.add(method_name=draw.choice(["", "tensorflow/serving/regress", "nope"]))
        _spec(draw, task.model_spec)
    _fill_input(draw, request.input)
    return bytes(request.SerializeToString())


def _metadata(draw: random.Random) -> bytes:
    request = message_class(APIS + "get_model_metadata_pb2", "GetModelMetadataRequest")()
    _spec(draw, request.model_spec)
    request.metadata_field.extend(draw.sample(["signature_def", "nope", ""], draw.randrange(3)))
    return bytes(request.SerializeToString())
