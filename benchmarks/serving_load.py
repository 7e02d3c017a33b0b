"""Bounded load on a model server, from this process, over loopback; no TensorFlow here."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import numpy as np
import psutil

from isthmus.serving import grpc_messages

MODEL = "bench"
Call = Callable[[], None]


class Sender(Protocol):
    """Sends one request and waits for its answer; raises when that is an error."""

    def __call__(self) -> None: ...


class GrpcSender:
    """Predict over gRPC, the message serialized once."""

    def __init__(self, port: int, image: bytes) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._call = self._channel.unary_unary(grpc_messages.PREDICT.path)
        request = grpc_messages.predict_request(MODEL, {"image_bytes": [image]}, "", None, None, ())
        self._request = request.SerializeToString()

    def __call__(self) -> None:
        self._call(self._request, timeout=60)


class HttpSender:
    """One POST on a connection that stays open."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._path, self._body = path, body

    def __call__(self) -> None:
        try:
            status, content = self._post()
        except (http.client.RemoteDisconnected, ConnectionError):
            # Closed while it lay idle: uvicorn waits five seconds by default.
            self._connection.close()
            status, content = self._post()
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {content[:300]!r}")

    def _post(self) -> tuple[int, bytes]:
        self._connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read()


def rest_sender(port: int, image: bytes) -> HttpSender:
    """TensorFlow Serving's REST predict, the image as base64."""
    text = base64.b64encode(image).decode()
    return HttpSender(
        port, f"/v1/models/{MODEL}:predict", json.dumps({"instances": [{"b64": text}]}).encode()
    )


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        total += times.user + times.system
    return total


def cpu_per_request(process: psutil.Process, send: Sender, requests: int) -> float:
    """CPU seconds of the server for one request, one after the other."""
    before = cpu_seconds(process)
    for _ in range(requests):
        send()
    return (cpu_seconds(process) - before) / requests


def requests_per_second(make: Callable[[], Sender], *, clients: int, seconds: float) -> float:
    """Finished requests a second of so many clients, each sending as soon as it was answered."""
    done, senders = [0] * clients, [make() for _ in range(clients)]
    stop = threading.Event()

    def run(index: int) -> None:
        while not stop.is_set():
            senders[index]()
            done[index] += 1

    for send in senders[:2]:
        send()
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run, index) for index in range(clients)]
        time.sleep(0.3)
        before, started = sum(done), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(done) - before) / (time.perf_counter() - started)
        stop.set()
        for future in running:
            future.result()
    return rate


def paced_latencies(
    make: Callable[[], Sender], *, rate: float, seconds: float, clients: int = 8, during: Call | None = None
) -> np.ndarray:
    """Seconds from when each request was due to its answer, at an even rate (an open loop: a slow server does
    not slow the load down). `during` runs in a thread meanwhile, and the load lasts at least as long."""
    senders = [make() for _ in range(clients)]
    for send in senders:
        send()
    helper = None if during is None else threading.Thread(target=during)
    started, lock, next_number = time.perf_counter() + 0.05, threading.Lock(), [0]
    latencies: list[float] = []

    def run(send: Sender) -> None:
        while True:
            with lock:
                number, next_number[0] = next_number[0], next_number[0] + 1
            due = started + number / rate
            if due > started + seconds and not (helper is not None and helper.is_alive()):
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            send()
            latencies.append(time.perf_counter() - due)

    if helper is not None:
        helper.start()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(run, send) for send in senders]:
            future.result()
    return np.array(latencies)
