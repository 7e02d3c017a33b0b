"""The weights leave the graph before TensorFlow copies it about, and are all there in what is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from isthmus.export.tf_half import weightless

RNG = np.random.default_rng(0)
# 28 kB, 147 kB and 24 kB are weights; the bias is too small.
FILTER = RNG.normal(size=(3, 3, 3, 256)).astype(np.float32)
KERNEL = RNG.normal(size=(144, 256)).astype(np.float32)
HEAD = RNG.normal(size=(96, 64)).astype(np.float32)
BIAS = RNG.normal(size=64).astype(np.float32)
TABLE = np.arange(8 * 8 * 96, dtype=np.int32)[::-1].copy()
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)


def classifier(weights: dict[str, tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    features = tf.nn.conv2d(images, weights["filter"], strides=4, padding="VALID")
    pooled = tf.reduce_mean(features, [1, 2])
    # Read together with another constant only: TensorFlow computes the transpose when the model is loaded.
    hidden = tf.nn.relu(pooled @ tf.transpose(weights["kernel"]))[:, :96]
    shuffled = tf.gather(hidden, weights["table"][-96:], axis=1)
    return shuffled @ weights["head"] + weights["bias"]


VALUES = {"filter": FILTER, "kernel": KERNEL, "head": HEAD, "bias": BIAS, "table": TABLE}


def constants(images: tf.Tensor) -> tf.Tensor:
    return classifier({name: tf.constant(value) for name, value in VALUES.items()}, images)


class Variables:
    """The same, its weights in variables."""

    def __init__(self) -> None:
        self.weights = {name: tf.Variable(value) for name, value in VALUES.items()}

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return classifier({name: weight.read_value() for name, weight in self.weights.items()}, images)


def saved(lowered: weightless.Weightless, folder: Path) -> saved_model_pb2.SavedModel:
    module = tf.Module()
    module.call, module.weights = lowered.function, lowered.variables
    # Two signatures call it, as many do in a real model.
    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")

    def once(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": lowered.function(images)[0]}

    def twice(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": 2 * lowered.function(images)[0]}

    signatures = {
        function.__name__: tf.function(function, input_signature=[spec]).get_concrete_function()
        for function in (once, twice)
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def bytes_of(lowered: weightless.Weightless) -> tuple[list[int], list[int]]:
    """(of the variables, of the captured constants)."""
    captured = [outer for outer, _ in lowered.function.graph.captures if outer.dtype != tf.resource]
    return (
        sorted(variable.numpy().nbytes for variable in lowered.variables),
        sorted(tensor.numpy().nbytes for tensor in captured),
    )


@pytest.mark.parametrize("logits_fn", [constants, Variables()], ids=["constants", "variables"])
def test_what_is_saved_computes_with_its_weights_in_both_loaders(logits_fn, tmp_path):
    lowered = weightless.trace(logits_fn, height=8, width=8)
    of_variables, of_constants = bytes_of(lowered)
    assert of_variables == [HEAD.nbytes]
    # A filter, what is folded with other constants, and integers stay constants.
    assert of_constants == sorted([FILTER.nbytes, TABLE.nbytes, KERNEL.nbytes])
    proto = saved(lowered, tmp_path)
    # Once each, although two signatures use them, and outside of all functions.
    assert sum(of_constants) < proto.ByteSize() < sum(of_constants) + FILTER.nbytes
    assert proto.meta_graphs[0].graph_def.library.ByteSize() < FILTER.nbytes
    expected = classifier({name: tf.constant(value) for name, value in VALUES.items()}, IMAGES).numpy()
    for name, times in (("once", 1), ("twice", 2)):
        for answer in answers(tmp_path, name):
            np.testing.assert_allclose(answer, times * expected, rtol=1e-3, atol=1e-2)


def test_tensorflow_serving_sees_filters_and_what_is_folded_as_constants(tmp_path):
    """oneDNN prepacks only those."""
    saved(weightless.trace(constants, height=8, width=8), tmp_path)
    v1 = tf.compat.v1
    metadata = v1.RunMetadata()
    with v1.Session(graph=tf.Graph()) as session:
        definition = v1.saved_model.load(session, ["serve"], str(tmp_path)).signature_def["once"]
        session.run(
            definition.outputs["logits"].name,
            {definition.inputs["images"].name: IMAGES},
            options=v1.RunOptions(output_partition_graphs=True),
            run_metadata=metadata,
        )
    nodes = {node.name: node for graph in metadata.partition_graphs for node in graph.node}
    read_by = {
        node.op: [nodes[name.split(":")[0]].op for name in node.input if not name.startswith("^")]
        for node in nodes.values()
    }
    assert not [op for op in read_by if "Transpose" in op]
    (convolution,) = (op for op in read_by if "Conv2D" in op)
    assert read_by[convolution][1] == "Const"


def answers(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of both loaders."""
    loaded = tf.saved_model.load(str(folder)).signatures[name](tf.constant(IMAGES))["logits"].numpy()
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        definition = v1.saved_model.load(session, ["serve"], str(folder)).signature_def[name]
        feeds = {definition.inputs["images"].name: IMAGES}
        return loaded, session.run(definition.outputs["logits"].name, feeds)


def test_filters_are_constants_up_to_a_limit_the_smallest_first(monkeypatch):
    small, large = (RNG.normal(size=(3, 3, 3, width)).astype(np.float32) for width in (200, 300))

    def two_filters(images: tf.Tensor) -> tf.Tensor:
        features = [tf.nn.conv2d(images, kernel, strides=4, padding="VALID") for kernel in (large, small)]
        return tf.concat([tf.reduce_mean(one, [1, 2]) for one in features], axis=1)

    assert bytes_of(weightless.trace(two_filters, height=8, width=8)) == ([], [small.nbytes, large.nbytes])
    monkeypatch.setattr(weightless, "FILTER_BYTES", large.nbytes)
    assert bytes_of(weightless.trace(two_filters, height=8, width=8)) == ([large.nbytes], [small.nbytes])
