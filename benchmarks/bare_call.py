"""The model by itself, without a server, as cheap as TensorFlow runs it: a Session callable.

python benchmarks/bare_call.py MODEL_FOLDER IMAGE

Answers commands on stdin, one JSON object a line: {"calls": 50} gives the CPU seconds of one call at batch 1;
{"batch": 8, "seconds": 2} gives images a second, two calls at a time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2


def main(folder: str, image: str) -> None:
    """Loads the model, announces itself, answers until stdin ends."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
    signature = loaded.signature_def["serving_default"]
    (feed,) = [info.name for info in signature.inputs.values()]
    fetches = [info.name for info in signature.outputs.values()]
    call = session._make_callable_from_options(config_pb2.CallableOptions(feed=[feed], fetch=fetches))
    data = Path(image).read_bytes()
    call(_batch(data, 1))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "calls" in asked:
            answer = cpu_seconds(call, data, asked["calls"])
        else:
            answer = images_per_second(call, data, asked["batch"], asked["seconds"])
        print(json.dumps(answer), flush=True)


def cpu_seconds(call: Callable[..., object], data: bytes, calls: int) -> float:
    """CPU seconds of this process per call at batch 1."""
    batch, before = _batch(data, 1), os.times()
    for _ in range(calls):
        call(batch)
    after = os.times()
    return (after.user + after.system - before.user - before.system) / calls


def images_per_second(call: Callable[..., object], data: bytes, size: int, seconds: float) -> float:
    """Images a second of two threads that call one after the other, as the server's batch threads do."""
    batch, done = _batch(data, size), [0, 0]
    call(batch)
    started = time.perf_counter()

    def run(index: int) -> None:
        while time.perf_counter() - started < seconds:
            call(batch)
            done[index] += size

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def _batch(data: bytes, size: int) -> np.ndarray:
    return np.array([data] * size, object)


if __name__ == "__main__":
    main(*sys.argv[1:])
