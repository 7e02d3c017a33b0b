"""LoggedModels written around existing files load with MLflow's own flavors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.lineage import models, tracking
from isthmus.lineage.files import sha256_file, tree_digest


def _onnx_file(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_model_loads_and_scores_through_mlflow(home, tmp_path):
    import mlflow
    import numpy as np

    path = _onnx_file(tmp_path / "model.onnx")
    with tracking.start_stage_run(experiment="digits", stage="export") as run:
        model_id = models.log_onnx_model(run.info.run_id, onnx_path=path, tags={"rung": "direct"})
    model = tracking.connect(home).get_logged_model(model_id)
    assert str(model.status) == "READY"
    assert model.tags["isthmus.onnx_sha256"] == sha256_file(path)
    assert model.tags["isthmus.rung"] == "direct"
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    scored = loaded.predict({"x": np.array([[-1.0, 2.0]], np.float32)})
    assert scored["y"].tolist() == [[0.0, 2.0]]
    graph = mlflow.onnx.load_model(f"models:/{model_id}").graph
    assert [node.op_type for node in graph.node] == ["Relu"]


def test_stored_saved_model_is_byte_for_byte_the_bundles(home, tmp_path):
    saved_model = tmp_path / "saved_model"
    (saved_model / "assets").mkdir(parents=True)
    (saved_model / "saved_model.pb").write_bytes(b"graph")
    with tracking.start_stage_run(experiment="digits", stage="export") as run:
        reserved = models.reserve(run.info.run_id)
        (saved_model / "assets" / "manifest.json").write_text(reserved["saved_model"])
        models.log_saved_model(run.info.run_id, saved_model=saved_model, model_id=reserved["saved_model"])
        models.abandon([reserved["onnx"]])
    client = tracking.connect(home)
    stored = client.get_logged_model(reserved["saved_model"])
    assert stored.tags["isthmus.saved_model_digest"] == tree_digest(
        saved_model, exclude=models.MANIFEST_COPIES
    )
    folder = Path(stored.artifact_location.removeprefix("file://")) / "saved_model"
    assert tree_digest(folder) == tree_digest(saved_model)
    assert str(client.get_logged_model(reserved["onnx"]).status) == "FAILED"
    outputs = client.get_run(run.info.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [reserved["saved_model"]]


def test_a_failed_upload_leaves_a_failed_model(home, tmp_path):
    with tracking.start_stage_run(experiment="digits", stage="export") as run:
        reserved = models.reserve(run.info.run_id)
        with pytest.raises(FileNotFoundError):
            models.log_onnx_model(
                run.info.run_id,
                onnx_path=_onnx_file(tmp_path / "model.onnx"),
                external_data=[tmp_path / "missing"],
                model_id=reserved["onnx"],
            )
    assert str(tracking.connect(home).get_logged_model(reserved["onnx"]).status) == "FAILED"


_TENSORFLOW_STORY = """
import sys
from pathlib import Path
import pandas
import tensorflow as tf
import mlflow
from isthmus.lineage import models, tracking

class Net(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        length = tf.strings.length(image_bytes)
        probabilities = tf.stack([tf.cast(length, tf.float32), tf.ones_like(length, tf.float32)], axis=1)
        return {
            "probabilities": probabilities,
            "class_id": tf.argmax(probabilities, axis=1),
            "label": tf.strings.as_string(length),
        }

home = Path(sys.argv[1])
net = Net()
tf.saved_model.save(net, str(home / "net"), signatures={"serving_default": net.serve})
tracking.connect(home)
with tracking.start_stage_run(experiment="digits", stage="export") as run:
    model_id = models.log_saved_model(run.info.run_id, saved_model=home / "net")
client = tracking.connect(home)
client.create_registered_model("digits")
client.create_model_version("digits", f"models:/{model_id}", model_id=model_id)
frame = pandas.DataFrame({"image_bytes": [b"abc", b"\\x89PNG\\r"]})
scored = mlflow.pyfunc.load_model("models:/digits/1").predict(frame)
assert scored["class_id"].tolist() == [0, 0], scored
assert scored["label"].tolist() == [b"3", b"5"], scored
assert scored["probabilities"].tolist() == [[3.0, 1.0], [5.0, 1.0]], scored
function = mlflow.tensorflow.load_model("models:/digits/1")
assert function(image_bytes=tf.constant([b"abcd"]))["label"].numpy().tolist() == [b"4"]
"""


@pytest.mark.slow
def test_registered_saved_model_loads_and_scores_through_mlflow(home):
    """In a process of its own: this one may hold torch."""
    done = subprocess.run(
        [sys.executable, "-c", _TENSORFLOW_STORY, str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
