"""Write the SavedModel that will serve: five signatures, assets, warm-up requests.

The manifest is a placeholder until the model is verified (`isthmus.export.bundle.write_manifest_copies`).

What is on disk depends on the weights, the preprocessing and the labels only, as long as the process has traced
nothing else before: TensorFlow numbers functions process-wide. Nothing random or dated is written. (TensorFlow's
`fingerprint.pb` holds a random id; it is left out, and nothing asks for it at serving time.)
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

from isthmus.export.errors import ExportError
from isthmus.export.tf_half import decoding, signatures, warmup, weightless
from isthmus.export.tf_half import preprocessing as preprocessing_module
from isthmus.export.tf_half.frozen import LogitsFn

CLASSIFY_METHOD = "tensorflow/serving/classify"
LABELS_FILE = "labels.txt"
MANIFEST_FILE = "manifest.json"
EXTRA_ASSETS = "assets.extra"
GRAPH_FILE = "saved_model.pb"


def save(
    logits_fn: LogitsFn,
    *,
    target: Path,
    preprocessing: Mapping[str, Any],
    labels: Sequence[str],
    head: signatures.Head,
    warmup_batch_sizes: Sequence[int],
    sample_images: Sequence[bytes],
) -> None:
    """Save a lowered model with everything that serves it; `target` appears complete or not at all.

    Args:
        logits_fn: float32 [N, H, W, 3] (NHWC, preprocessed) -> float32 [N, C]; what `lowering.lower` returns.
        target: folder of the SavedModel; must not exist.
        preprocessing: timm's resolved data configuration.
        labels: one per class, in order.
        head: what turns logits into probabilities.
        warmup_batch_sizes: batch sizes for which a warm-up request is written.
        sample_images: at least one encoded image, for those requests.

    Raises:
        ExportError: the target exists; the preprocessing cannot be expressed; a label that is not one line; a
            number of labels that is not the model's number of classes.
    """
    if target.exists():
        raise ExportError(f"{target} exists already; a SavedModel is written to a new folder")
    steps = preprocessing_module.build(dict(preprocessing))
    _check_labels(labels)
    lowered = weightless.trace(logits_fn, height=steps.height, width=steps.width)
    # It holds the weights again; the caller, it is hoped, has let go of it too.
    del logits_fn
    _check_logits(lowered.function, labels)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (staging / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (staging / MANIFEST_FILE).write_text("{}\n", encoding="utf-8")
        model = signatures.ServedModel(
            lowered.function,
            variables=lowered.variables,
            preprocessing=steps,
            head=head,
            num_classes=len(labels),
            labels_file=staging / LABELS_FILE,
            manifest_file=staging / MANIFEST_FILE,
        )
        tf.saved_model.save(model, str(staging / "model"), signatures=model.signatures())
        _finish(staging / "model")
        extra = staging / "model" / EXTRA_ASSETS
        extra.mkdir()
        warmup.write(
            extra / warmup.FILE_NAME,
            batch_sizes=warmup_batch_sizes,
            sample_images=sample_images,
            height=steps.height,
            width=steps.width,
        )
        os.rename(staging / "model", target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_labels(labels: Sequence[str]) -> None:
    broken = [label for label in labels if "\n" in label or "\r" in label]
    if broken:
        raise ExportError(
            f"label {broken[0]!r} has a line break: labels.txt holds one label a line. Rename it"
        )


def _check_logits(logits: Any, labels: Sequence[str]) -> None:
    shape = logits.outputs[0].shape
    if shape.rank != 2 or shape[1] not in (None, len(labels)):
        raise ExportError(
            f"the lowered model gives logits of shape {shape}; expected (N, {len(labels)}), one per label"
        )


def _finish(folder: Path) -> None:
    """Name the classify method, take out what differs between runs or is of no use."""
    file = folder / GRAPH_FILE
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        meta_graph.signature_def["classify"].method_name = CLASSIFY_METHOD
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                # They are inferred again by whoever loads it.
                node.attr.pop("_output_shapes", None)
            name = function.signature.name
            if not name.startswith("__inference_") or name.startswith(f"__inference_{decoding.SHARED}"):
                _shorten_names(function)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)


def _shorten_names(function: function_pb2.FunctionDef) -> None:
    """Number the nodes of a branch or loop body, in place.

    Preprocessing has some seventy of these; their nodes' long names were half of its bytes, as much as a tenth of
    the smallest models. The model's own function keeps its names.
    """
    taken = {argument.name for argument in function.signature.input_arg}
    numbers = (name for name in map("n{}".format, itertools.count()) if name not in taken)
    renamed = {node.name: next(numbers) for node in function.node_def}

    def short(reference: str) -> str:
        control = "^" if reference.startswith("^") else ""
        name, colon, output = reference.removeprefix("^").partition(":")
        return f"{control}{renamed.get(name, name)}{colon}{output}"

    for node in function.node_def:
        node.name = renamed[node.name]
        node.input[:] = [short(reference) for reference in node.input]
        node.attr.pop("_class", None)
        node.ClearField("experimental_debug_info")
    for returned in (function.ret, function.control_ret):
        for name in list(returned):
            returned[name] = short(returned[name])


def optimized_ops(
    saved_model: Path, *, signature: str = "tensors", inputs: Mapping[str, np.ndarray]
) -> Counter[str]:
    """How often each operator occurs in the graph that runs, after TensorFlow's own optimisers.

    Loads the model as TensorFlow Serving does (a v1 session, default options) and runs `signature` on
    `inputs`.
    """
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        loaded = v1.saved_model.load(session, ["serve"], str(saved_model))
        chosen = loaded.signature_def[signature]
        metadata = v1.RunMetadata()
        session.run(
            {name: tensor.name for name, tensor in chosen.outputs.items()},
            {chosen.inputs[name].name: value for name, value in inputs.items()},
            options=v1.RunOptions(output_partition_graphs=True),
            run_metadata=metadata,
        )
    return Counter(node.op for graph in metadata.partition_graphs for node in graph.node)
