"""The weights leave the graph before TensorFlow copies it about, and are all back in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from isthmus.export.tf_half import weightless

RNG = np.random.default_rng(0)
# 75 kB and 24 kB: both are lifted out; the bias is too small.
KERNEL = RNG.normal(size=(8 * 8 * 3, 96)).astype(np.float32)
HEAD = RNG.normal(size=(96, 64)).astype(np.float32)
BIAS = RNG.normal(size=64).astype(np.float32)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)


def constants(images: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(images, [-1, 8 * 8 * 3])
    return tf.nn.relu(flat @ tf.constant(KERNEL)) @ tf.constant(HEAD) + tf.constant(BIAS)


class Variables:
    """The same, its weights in variables."""

    def __init__(self) -> None:
        self.kernel, self.head, self.bias = tf.Variable(KERNEL), tf.Variable(HEAD), tf.Variable(BIAS)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(images, [-1, 8 * 8 * 3])
        return tf.nn.relu(flat @ self.kernel) @ self.head + self.bias


def saved(lowered: weightless.Weightless, folder: Path) -> saved_model_pb2.SavedModel:
    module = tf.Module()
    module.call = lowered.function
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


@pytest.mark.parametrize("logits_fn", [constants, Variables()], ids=["constants", "variables"])
def test_what_is_saved_without_weights_computes_with_them(logits_fn, tmp_path):
    lowered = weightless.trace(logits_fn, height=8, width=8)
    assert sorted(len(tensor.tensor_content) for tensor in lowered.weights) == [HEAD.nbytes, KERNEL.nbytes]
    proto = saved(lowered, tmp_path)
    assert proto.ByteSize() < KERNEL.nbytes
    lowered.restore(proto)
    assert lowered.weights == []
    # Once each, although two signatures use them.
    assert KERNEL.nbytes + HEAD.nbytes < proto.ByteSize() < KERNEL.nbytes + 2 * HEAD.nbytes
    assert "_isthmus" not in str(proto)
    (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString(deterministic=True))
    loaded = tf.saved_model.load(str(tmp_path))
    expected = np.maximum(IMAGES.reshape(3, -1) @ KERNEL, 0) @ HEAD + BIAS
    for name, times in (("once", 1), ("twice", 2)):
        answer = loaded.signatures[name](tf.constant(IMAGES))["logits"].numpy()
        np.testing.assert_allclose(answer, times * expected, rtol=1e-4, atol=1e-2)


def test_a_proto_without_the_function_is_refused():
    lowered = weightless.trace(constants, height=8, width=8)
    with pytest.raises(ValueError, match="2 weights have no place in the SavedModel"):
        lowered.restore(saved_model_pb2.SavedModel())
