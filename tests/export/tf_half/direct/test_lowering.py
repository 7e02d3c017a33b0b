"""Whole files: what is accepted, what is refused and with which words, and that any batch goes through."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from isthmus.export.tf_half.direct import lower_graph
from isthmus.export.tf_half.direct.errors import LoweringError, UnsupportedOperatorError


def tiny_network(rng, *, batch="batch", image=("x", [3, 16, 16]), extra=(), domain=""):
    """Conv + BatchNorm + Relu, a residual block, squeeze-excite, pooling, a linear head."""
    channels = 8
    weights = {
        "w0": rng.standard_normal((channels, 3, 3, 3), np.float32),
        "w1": rng.standard_normal((channels, 1, 3, 3), np.float32),
        "w2": rng.standard_normal((channels, channels, 1, 1), np.float32),
        "head": rng.standard_normal((5, channels), np.float32),
        "bias": rng.standard_normal(5, np.float32),
        **{name: rng.random(channels, np.float32) + 0.5 for name in ("g", "b", "m", "v")},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2], name="stem"),
        helper.make_node("BatchNormalization", ["c0", "g", "b", "m", "v"], ["n0"]),
        helper.make_node("Relu", ["n0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1], group=channels),
        helper.make_node("Add", ["c1", "r0"], ["a1"]),
        helper.make_node("ReduceMean", ["a1"], ["s0"], axes=[2, 3]),
        helper.make_node("Conv", ["s0", "w2"], ["s1"]),
        helper.make_node("Sigmoid", ["s1"], ["s2"]),
        helper.make_node("Mul", ["a1", "s2"], ["e"]),
        *extra,
        helper.make_node("GlobalAveragePool", ["e"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["logits"], transB=1, name="head"),
    ]
    if domain:
        nodes[2] = helper.make_node("Relu", ["n0"], ["r0"], domain=domain, name="foreign")
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(image[0], TensorProto.FLOAT, [batch, *image[1]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


@pytest.fixture
def saved(tmp_path):
    """Write a model to disk."""

    def save(model, name="model.onnx"):
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch(saved, rng, batch):
    path = saved(tiny_network(rng))
    lowered = lower_graph(path)
    spec = tf.TensorSpec([None, 16, 16, 3], tf.float32)
    function = tf.function(lowered, input_signature=[spec])
    images = rng.standard_normal((batch, 16, 16, 3), np.float32)
    session = onnxruntime.InferenceSession(str(path))
    (expected,) = session.run(None, {"x": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(function(images).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_convolutional_network_keeps_its_layout(saved, rng):
    lowered = lower_graph(saved(tiny_network(rng)))
    assert lowered.image_shape == (16, 16, 3)
    concrete = tf.function(lowered, input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.float32)])
    operators = [operation.type for operation in concrete.get_concrete_function().graph.get_operations()]
    assert "Transpose" not in operators
    # BatchNormalization went into the convolution's weights
    assert operators.count("Mul") == 1


def test_saved_and_reloaded(saved, rng, tmp_path):
    path = saved(tiny_network(rng))
    module = tf.Module()
    spec = tf.TensorSpec([None, 16, 16, 3], tf.float32, "images")
    module.serve = tf.function(lower_graph(path), input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    images = rng.standard_normal((2, 16, 16, 3), np.float32)
    restored = tf.saved_model.load(str(tmp_path / "saved")).serve(images)
    np.testing.assert_allclose(restored, module.serve(images), rtol=1e-5)


def test_unsupported_operator_is_named(saved, rng):
    extra = [helper.make_node("NonMaxSuppression", ["e", "e"], ["nms"], name="boxes")]
    model = tiny_network(rng, extra=extra)
    model.graph.node[-3].input[0] = "nms"
    with pytest.raises(UnsupportedOperatorError) as caught:
        lower_graph(saved(model))
    assert (caught.value.op_type, caught.value.node, caught.value.opset) == ("NonMaxSuppression", "boxes", 17)
    text = "cannot lower ONNX operator NonMaxSuppression (domain ai.onnx, opset 17) of node 'boxes'"
    assert str(caught.value).startswith(text)


def with_batch_statistics(model):
    """BatchNormalization as files before opset 14 have it: with the four outputs of training."""
    model.opset_import[0].version = 13
    model.graph.node[1].output.extend(["mean", "variance", "saved_mean", "saved_variance"])
    model.graph.node[1].name = "norm"
    return model


def test_batch_statistics_that_nobody_reads_change_nothing(saved, rng):
    plain = tiny_network(rng)
    images = rng.standard_normal((2, 16, 16, 3), np.float32)
    expected = lower_graph(saved(plain))(images).numpy()
    answer = lower_graph(saved(with_batch_statistics(plain)))(images).numpy()
    np.testing.assert_array_equal(answer, expected)


def test_batch_statistics_that_are_read_are_refused(saved, rng):
    extra = [
        helper.make_node("Unsqueeze", ["mean", "axes"], ["column"]),
        helper.make_node("Add", ["e", "column"], ["f"]),
    ]
    model = with_batch_statistics(tiny_network(rng, extra=extra))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    model.graph.node[-3].input[0] = "f"
    with pytest.raises(UnsupportedOperatorError, match="of node 'norm': its further output 'mean' is read"):
        lower_graph(saved(model))


@pytest.mark.parametrize("pick", [0, 1])
def test_a_branch_is_taken_where_shapes_decide(agree, rng, pick):
    """What TorchScript writes for squeeze() of an axis of unknown size."""
    then_graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["doubled"])],
        "then",
        [],
        [helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    else_graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["negative"])],
        "else",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["size"]),
        helper.make_node("Equal", ["size", "wanted"], ["same"]),
        helper.make_node("If", ["same"], ["y"], then_branch=then_graph, else_branch=else_graph),
    ]
    constants = {"one": np.int64(1), "wanted": np.int64(4 + pick)}
    agree(nodes, {"x": rng.standard_normal((2, 4), np.float32)}, constants)


def branch_of(*nodes, output, **constants):
    """A branch of an If: no inputs, what it reads besides its own names comes from outside."""
    return helper.make_graph(
        list(nodes),
        "branch",
        [],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(array), name) for name, array in constants.items()],
    )


def scaled_if(condition, read, result, factor):
    """An If whose branches name everything inside `weight`, `inner` and `out`, and a further If in there."""
    innermost = helper.make_node(
        "If",
        [condition],
        ["nested"],
        then_branch=branch_of(
            helper.make_node("Add", ["inner", "weight"], ["out"]),  # both captured from one further out
            output="out",
        ),
        else_branch=branch_of(helper.make_node("Neg", ["inner"], ["out"]), output="out"),
    )
    then_branch = branch_of(
        helper.make_node("Mul", [read, "weight"], ["inner"]),
        innermost,
        helper.make_node("Relu", ["nested"], ["out"]),
        output="out",
        weight=factor,
    )
    else_branch = branch_of(helper.make_node("Neg", [read], ["out"]), output="out")
    return helper.make_node("If", [condition], [result], then_branch=then_branch, else_branch=else_branch)


def test_branches_side_by_side_may_use_the_same_names(agree, rng):
    """As torch's exporters write them: each If begins to count anew."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["size"]),
        helper.make_node("Equal", ["size", "wanted"], ["same"]),
        scaled_if("same", "x", "a", 2.0),
        scaled_if("same", "x", "b", 5.0),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    constants = {"one": np.int64(1), "wanted": np.int64(4)}
    agree(nodes, {"x": rng.standard_normal((2, 4), np.float32)}, constants, outputs=("a", "b", "y"))


def test_foreign_domain_is_refused(saved, rng):
    with pytest.raises(UnsupportedOperatorError, match=r"domain com\.example.*'foreign'.*only the standard"):
        lower_graph(saved(tiny_network(rng, domain="com.example")))


def test_fixed_batch_is_refused(saved, rng):
    with pytest.raises(LoweringError, match="fixed batch of 2; export it with a dynamic batch axis"):
        lower_graph(saved(tiny_network(rng, batch=2)))


def test_open_image_size_is_refused(saved, rng):
    with pytest.raises(LoweringError, match=r"expected float32 \[N, C, H, W\] with fixed C, H, W"):
        lower_graph(saved(tiny_network(rng, image=("x", [3, "height", 16]))))


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x08"])
def test_not_an_onnx_file(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(LoweringError, match=r"broken\.onnx is not"):
        lower_graph(path)


def test_missing_file(tmp_path):
    with pytest.raises(LoweringError, match=r"nowhere\.onnx is not a readable ONNX model"):
        lower_graph(tmp_path / "nowhere.onnx")
