"""Writes the SavedModels that the serving tests ask for, TF1 and TF2 style, and a model_config_file for them.

To run the conformance suite against a real TensorFlow Serving:

    python tests/serving/models.py /tmp/models
    tensorflow_model_server --port=8500 --rest_api_port=8501 --model_config_file=/tmp/models/models.config \
        --allow_version_labels_for_unavailable_models=true
    pytest tests/serving/conformance --target=localhost:8500:8501
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

CONFIG = """\
model_config_list {{
  config {{
    name: "half_plus_two"
    base_path: "{root}/half_plus_two"
    model_platform: "tensorflow"
  }}
  config {{
    name: "half_plus_n"
    base_path: "{root}/half_plus_n"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 2 versions: 3 }} }}
    version_labels {{ key: "stable" value: 2 }}
    version_labels {{ key: "canary" value: 3 }}
    version_labels {{ key: "missing" value: 9 }}
  }}
  config {{
    name: "echo"
    base_path: "{root}/echo"
    model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
  }}
}}
"""

ECHO_DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "string",
    "complex64",
)


def write_all(root: Path) -> Path:
    """Write every model under root; returns the model_config_file."""
    # Before TensorFlow has looked at its devices.
    write_mirrored_keras(root / "mirrored_keras" / "00000123")
    write_half_plus_tf1(root / "half_plus_two" / "00000123", addend=2.0)
    for version in (1, 2, 3):
        write_half_plus_tf2(root / "half_plus_n" / str(version), addend=float(version))
    write_echo(root / "echo" / "7")
    write_colours(root / "colours" / "1")
    write_half_plus_tf1(root / "half_plus_two_tf2" / "00000123", addend=2.0, with_methods=False)
    write_saved_by_tf2(root / "saved_by_tf2" / "00000123")
    write_checkpoint(root / "checkpoint" / "00000123")
    config = root / "models.config"
    config.write_text(CONFIG.format(root=root.absolute()))
    return config


def write_half_plus_tf1(path: Path, *, addend: float, with_methods: bool = True) -> None:
    """y = 0.5 x + addend with TF1 reference variables: predict, classify and regress signatures, as TF's own
    test model half_plus_two has them; without the methods' names, as its half_plus_two_tf2."""
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        a = v1.get_variable("a", initializer=0.5, use_resource=False)
        b = v1.get_variable("b", initializer=addend, use_resource=False)
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        features = v1.parse_example(
            serialized,
            {
                "x": v1.FixedLenFeature([1], tf.float32),
                "x2": v1.FixedLenFeature([1], tf.float32, default_value=[0.0]),
            },
        )
        x = tf.identity(features["x"], name="x")
        y = tf.add(tf.multiply(a, x), b, name="y")
        y2 = tf.add(y, 1.0, name="y2")
        labels = tf.tile(tf.constant([["one"]]), [tf.shape(x)[0], 1])
        session.run(v1.global_variables_initializer())
        method = v1.saved_model.signature_constants
        info = v1.saved_model.utils.build_tensor_info

        def definition(inputs: Any, outputs: Any, name: str) -> Any:
            build = v1.saved_model.signature_def_utils.build_signature_def
            return build(inputs, outputs, name if with_methods else "")

        examples = {"inputs": info(serialized)}
        regress, classify = method.REGRESS_METHOD_NAME, method.CLASSIFY_METHOD_NAME
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": definition({"x": info(x)}, {"y": info(y)}, method.PREDICT_METHOD_NAME),
                "regress_x_to_y": definition(examples, {"outputs": info(y)}, regress),
                "regress_x_to_y2": definition(examples, {"outputs": info(y2)}, regress),
                "classify_x_to_y": definition(examples, {"scores": info(y)}, classify),
                "classify_labels": definition(
                    examples, {"scores": info(y), "classes": info(labels)}, classify
                ),
                "regress_x": definition({"inputs": info(x)}, {"outputs": info(y)}, regress),
                "no_scores": definition(examples, {"y": info(y)}, classify),
            },
        )
        builder.save()


def write_half_plus_tf2(path: Path, *, addend: float) -> None:
    """y = 0.5 x + addend as a TF2 module; x may have any length."""

    class HalfPlus(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = tf.Variable(0.5)
            self.b = tf.Variable(addend)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def predict(self, x: Any) -> Any:
            return {"y": self.a * x + self.b}

    module = HalfPlus()
    tf.saved_model.save(module, str(path), signatures=module.predict)


def write_saved_by_tf2(path: Path) -> None:
    """half_plus_two as TF2 saves it: every method name is predict's, every signature has an input of its own."""

    class HalfPlusTwo(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = tf.Variable(0.5)
            self.b = tf.Variable(2.0)

        def of_examples(self, examples: Any) -> Any:
            parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
            return self.a * parsed["x"] + self.b

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def predict(self, x: Any) -> Any:
            return {"y": self.a * x + self.b}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs: Any) -> Any:
            return {"scores": self.of_examples(inputs)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs: Any) -> Any:
            return {"outputs": self.of_examples(inputs)}

    module = HalfPlusTwo()
    signatures = {
        "serving_default": module.predict,
        "classify_x_to_y": module.classify,
        "regress_x_to_y": module.regress,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def write_checkpoint(path: Path) -> None:
    """A tf.train.Checkpoint with two signatures, for inputs of any rank."""
    root = tf.train.Checkpoint()
    root.factor = tf.Variable(6.0)
    spec = tf.TensorSpec(None, tf.float32, name="x")
    root.f = tf.function(lambda x: {"y": root.factor * x}, input_signature=[spec])
    root.g = tf.function(lambda x: {"y": 2.0 + 0.0 * x}, input_signature=[spec])
    tf.saved_model.save(root, str(path), {"serving_default": root.f, "custom_signature_key": root.g})


def write_mirrored_keras(path: Path) -> None:
    """A Keras Sequential model, its variables mirrored on two virtual devices, exported by Keras itself."""
    (device,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        dense = tf.keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="zeros", name="y")
        model = tf.keras.Sequential([tf.keras.layers.Input((1,), name="x"), dense])
    model.export(str(path), verbose=False)


def write_echo(path: Path) -> None:
    """One identity signature per dtype, and signatures for what the wire formats must be able to say."""
    module = tf.Module()
    signatures: dict[str, Any] = {}

    def add(name: str, specs: dict[str, Any], body: Any) -> None:
        signatures[name] = tf.function(body).get_concrete_function(**specs)

    for dtype in ECHO_DTYPES:
        spec = tf.TensorSpec(None, dtype, name="x")
        add(f"echo_{dtype}", {"x": spec}, lambda x: {"y": tf.identity(x)})
    string = tf.TensorSpec([None], tf.string, name="image_bytes")
    add("echo_bytes", {"image_bytes": string}, lambda image_bytes: {"image_bytes": tf.identity(image_bytes)})
    vector = tf.TensorSpec([None], tf.float32)
    add(
        "pair",
        {
            "a": tf.TensorSpec([None], tf.float32, name="a"),
            "b": tf.TensorSpec([None, 2], tf.int32, name="b"),
        },
        lambda a, b: {"sum": a + tf.cast(tf.reduce_sum(b, 1), tf.float32), "copy": tf.identity(b)},
    )
    add("uneven", {"x": vector}, lambda x: {"one": x[:1], "all": x + 0.0})
    add("scalar", {"x": vector}, lambda x: {"total": tf.reduce_sum(x)})
    add("no_inputs", {}, lambda: {"y": tf.constant([1.0])})
    add("division", {"x": vector}, lambda x: {"y": x / tf.constant(0.0)})
    add(
        "fails",
        {"x": vector},
        lambda x: {"y": tf.debugging.check_numerics(x / tf.constant(0.0), "no number")},
    )
    add(
        "table", {"x": vector}, lambda x: {"y": tf.gather(tf.constant([1.0, 2.0, 3.0]), tf.cast(x, tf.int32))}
    )

    def slow(x: Any) -> Any:
        square = tf.fill([1200, 1200], tf.reduce_sum(x) * 1e-9)
        return {"y": x + tf.reduce_sum(tf.linalg.matmul(square, square)) * 0.0}

    add("slow", {"x": vector}, slow)
    tf.saved_model.save(module, str(path), signatures=signatures)


def write_colours(path: Path) -> None:
    """Which of red, green and blue an encoded image has most of; with a bundle's manifest."""
    names = tf.constant(["red", "green", "blue"])

    def mean_colour(data: Any) -> Any:
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        return tf.reduce_mean(tf.cast(image, tf.float32), [0, 1]) / 64.0

    def classify(image_bytes: Any) -> Any:
        shares = tf.nn.softmax(tf.map_fn(mean_colour, image_bytes, fn_output_signature=tf.float32))
        best = tf.argmax(shares, 1)
        return {"probabilities": shares, "class_id": best, "label": tf.gather(names, best)}

    spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    signature = tf.function(classify).get_concrete_function(image_bytes=spec)
    tf.saved_model.save(tf.Module(), str(path), signatures=signature)
    (path / "assets.extra").mkdir()
    manifest = {
        "model": {"name": "colour_mean"},
        "source": {"commit": "0123456789abcdef0123"},
        "dataset": {"name": "crayons"},
        "parity": {"passed": True},
    }
    (path / "assets.extra" / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    sys.stdout.write(f"{write_all(Path(sys.argv[1]))}\n")
