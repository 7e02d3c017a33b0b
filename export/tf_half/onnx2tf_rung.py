"""The first rung: onnx2tf, the bridge that is excellent on convolutional networks.

onnx2tf is a program that happens to be importable: it seeds the global random generators, prints, exits the
process on failure, may call other programs and may download sample images. What is done about each of these
is here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2

from isthmus.export.errors import ExportError
from isthmus.export.tf_half import prepare
from isthmus.export.tf_half.frozen import FrozenGraph, LogitsFn, freeze

logger = logging.getLogger(__name__)

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
"""onnx2tf sets it when it is imported, and works under it."""


def lower(onnx_path: Path) -> LogitsFn:
    """float32 [N, H, W, 3] -> float32 [N, C], frozen; the file is only read.

    Raises:
        ExportError: onnx2tf gave up, or gave a model of another form.
    """
    model = onnx.load(onnx_path)
    try:
        model = prepare.fold_shapes(model)
    except Exception as error:  # noqa: BLE001 - folding is a help: the graph may convert without it
        logger.debug("shape arithmetic of %s was not folded: %s", onnx_path, error)
    keras_model = _convert(model)
    frozen = _freeze(keras_model, onnx_path)
    _spell_out_squared_differences(frozen.graph)
    _keep_grouped_convolutions_apart(frozen.graph)
    return frozen


def _convert(model: onnx.ModelProto) -> Any:
    """onnx2tf's tf_keras model. Runs in a folder that goes away, on a copy that it may overwrite."""
    with tempfile.TemporaryDirectory(prefix="isthmus-onnx2tf-") as folder, _contained() as said:
        copy = Path(folder, "model.onnx")
        onnx.save(model, copy)
        import onnx2tf

        try:
            return onnx2tf.convert(
                input_onnx_file_path=str(copy),
                output_folder_path=str(Path(folder, "out")),
                # It would start the program `onnxsim` and overwrite its input.
                not_use_onnxsim=True,
                disable_model_save=True,
                non_verbose=True,
                verbosity="error",
            )
        except (Exception, SystemExit) as error:
            reason = _reason(said.getvalue(), error)
            raise ExportError(f"onnx2tf does not carry this model: {reason}") from error


@contextlib.contextmanager
def _contained() -> Iterator[io.StringIO]:
    """Keep onnx2tf's prints, its seeds, its downloads, its Keras and its recursion limit from the rest of the process.

    Importing it lifts that limit to 2^31, and then C code that counts on the limit (json's scanner of a deeply
    nested text) overflows the stack instead of raising RecursionError. It also has every process below this one take
    Keras 2.
    """
    said = io.StringIO()
    recursion_limit, keras = sys.getrecursionlimit(), os.environ.get(LEGACY_KERAS)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        os.environ[LEGACY_KERAS] = "1"
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _no_sample_images():
            yield said
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        sys.setrecursionlimit(recursion_limit)
        del os.environ[LEGACY_KERAS]
        if keras is not None:
            os.environ[LEGACY_KERAS] = keras


@contextlib.contextmanager
def _no_sample_images() -> Iterator[None]:
    """A model with a fixed batch would make it fetch photographs; random pixels serve the same purpose."""
    import onnx2tf  # noqa: F401 - its module `onnx2tf.onnx2tf` is hidden by a name of the package

    module: Any = sys.modules["onnx2tf.onnx2tf"]
    original = module.download_test_image_data
    module.download_test_image_data = lambda: np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
    try:
        yield
    finally:
        module.download_test_image_data = original


def _reason(output: str, error: BaseException) -> str:
    """The node that broke, and the first line of why."""
    lines = [line.split("ERROR:\x1b[0m", 1)[-1].strip() for line in output.splitlines() if "ERROR:" in line]
    node = next((line for line in lines if line.startswith("onnx_op_name:")), "")
    cause = next(
        (line for line in str(error).splitlines() if line.strip() and "calling layer" not in line), ""
    )
    if isinstance(error, SystemExit):
        cause = next(
            (line for line in lines if not line.startswith(("onnx_op_name:", "input_onnx"))), "it exited"
        )
    return f"{cause.strip()} ({node.replace('onnx_op_name:', 'node').strip() or 'no node named'})"


def _freeze(keras_model: Any, onnx_path: Path) -> FrozenGraph:
    """The Keras model as a graph: saving it itself writes every constant as JSON, which takes minutes, and gives a
    file that the v1 loader refuses.
    """
    if len(keras_model.inputs) != 1 or len(keras_model.outputs) != 1:
        raise ExportError(
            f"{onnx_path.name} has {len(keras_model.inputs)} inputs and {len(keras_model.outputs)} outputs; "
            "expected one image input and one output, the logits"
        )
    shape = keras_model.inputs[0].shape
    if len(shape) != 4 or shape[-1] != 3:
        raise ExportError(f"onnx2tf gave an input of shape {shape}; expected (N, height, width, 3)")

    def call(images: tf.Tensor) -> tf.Tensor:
        return keras_model(images, training=False)

    return freeze(call, height=shape[1], width=shape[2])


def _spell_out_squared_differences(graph: graph_pb2.GraphDef) -> None:
    """Replace SquaredDifference(a, b) by (a - b) * (a - b), in place.

    On x86, TensorFlow's remapper recognises a layer normalisation by its SquaredDifference and puts oneDNN's
    fused kernel in its place with epsilon 0.001, whatever epsilon it had. Written like this it is left
    alone.
    """
    for node in list(graph.node):
        if node.op != "SquaredDifference":
            continue
        difference = graph.node.add()
        difference.name, difference.op = f"{node.name}/difference", "Sub"
        difference.device = node.device
        data = [name for name in node.input if not name.startswith("^")]
        control = [name for name in node.input if name.startswith("^")]
        difference.input.extend([*data, *control])
        difference.attr["T"].CopyFrom(attr_value_pb2.AttrValue(type=node.attr["T"].type))
        node.op = "Mul"
        del node.input[:]
        node.input.extend([difference.name, difference.name])


def _keep_grouped_convolutions_apart(graph: graph_pb2.GraphDef) -> None:
    """Put a check of the shape after each Conv2D with groups, in place.

    Grappler would fuse it with the bias that follows, and TensorFlow's own fused kernel, which runs wherever oneDNN
    does not (x86 without AVX512-VNNI), refuses groups: the model would fail at its first request. Grappler does not
    see through the check.
    """
    imported = tf.Graph()
    with imported.as_default():
        tf.graph_util.import_graph_def(graph, name="")
    for node in list(graph.node):
        if node.op != "Conv2D":
            continue
        operation = imported.get_operation_by_name(node.name)
        image, kernel = operation.inputs
        channels = image.shape[3 if node.attr["data_format"].s != b"NCHW" else 1]
        if channels == kernel.shape[2]:
            continue
        check = graph.node.add()
        check.name, check.op, check.device = node.name, "EnsureShape", node.device
        node.name = f"{node.name}/grouped"
        check.input.append(node.name)
        check.attr["T"].CopyFrom(attr_value_pb2.AttrValue(type=node.attr["T"].type))
        check.attr["shape"].CopyFrom(attr_value_pb2.AttrValue(shape=operation.outputs[0].shape.as_proto()))
