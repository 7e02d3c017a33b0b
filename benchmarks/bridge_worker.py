"""One runtime with one model in a process of its own: torch and TensorFlow never share one.

python benchmarks/bridge_worker.py tensorflow SAVED_MODEL_FOLDER
python benchmarks/bridge_worker.py onnxruntime MODEL.onnx
python benchmarks/bridge_worker.py torch TIMM_NAME WEIGHTS.safetensors     (torch.compile)

Answers commands on stdin, one JSON object a line: {"batch": 16, "calls": 3} gives the seconds of each call on the
same random image batch; {"operators": true} gives how often each operator stands in TensorFlow's optimised graph.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Of every runtime, for the work inside one operator.
THREADS = 2
Predict = Callable[[np.ndarray], Any]


def tensorflow(folder: str) -> tuple[Predict, tuple[int, int]]:
    """The signature `tensors` of a SavedModel, as TensorFlow Serving runs it: a v1 session with its defaults."""
    import tensorflow as tf

    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph(), config=v1.ConfigProto(intra_op_parallelism_threads=THREADS))
    with session.graph.as_default():
        signature = v1.saved_model.load(session, ["serve"], folder).signature_def["tensors"]
    images, logits = signature.inputs["images"], signature.outputs["logits"]
    height, width = (dim.size for dim in images.tensor_shape.dim[1:3])
    return session.make_callable(logits.name, [images.name]), (height, width)


def onnxruntime(file: str) -> tuple[Predict, tuple[int, int]]:
    """ONNX Runtime's CPU provider with its defaults."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    return lambda batch: session.run(None, {image.name: batch}), tuple(image.shape[2:])


def torch(name: str, weights: str) -> tuple[Predict, tuple[int, int]]:
    """timm's model under torch.compile, each batch size compiled for itself."""
    import timm
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(THREADS)
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    compiled = torch.compile(model, dynamic=False)

    def predict(batch: np.ndarray) -> Any:
        with torch.inference_mode():
            return compiled(torch.from_numpy(batch))

    return predict, tuple(model.default_cfg["input_size"][1:])


def main(runtime: str, *model: str) -> None:
    """Loads the model, announces itself, answers until stdin ends."""
    predict, size = {"tensorflow": tensorflow, "onnxruntime": onnxruntime, "torch": torch}[runtime](*model)
    print(json.dumps({"ready": True}), flush=True)
    batches: dict[int, np.ndarray] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "operators" in asked:
            answer: Any = operators(Path(*model), size)
        else:
            batch = batches.setdefault(asked["batch"], images(asked["batch"], size, runtime))
            answer = []
            for _ in range(asked["calls"]):
                started = time.perf_counter()
                predict(batch)
                answer.append(time.perf_counter() - started)
        print(json.dumps(answer), flush=True)


def images(num: int, size: tuple[int, int], runtime: str) -> np.ndarray:
    """float32 in the order that the runtime takes: NHWC for TensorFlow, else NCHW."""
    shape = (num, *size, 3) if runtime == "tensorflow" else (num, 3, *size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def operators(folder: Path, size: tuple[int, int]) -> dict[str, int]:
    """Of the graph that runs."""
    from isthmus.export.tf_half.saving import optimized_ops

    return dict(optimized_ops(folder, inputs={"images": images(1, size, "tensorflow")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
