"""One job of the TF half: model.onnx → saved_model/, by one rung of the ladder.

    python -m isthmus.export.tf_half <job folder>

request.json: {"onnx", "rung", "saved_model" (folder to make), "reference", "preprocessing", "labels", "head",
"warmup_batch_sizes"}, and where it is not fp32 "precision" and "calibration" (a file, or null), and
"tflite" (a file to write).
 result.json: {"seconds": {"lower", "save"}, "litert": what `litert.convert` returns, or {"problem"}}.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.errors import ExportError
from isthmus.export.jobs import serve_job
from isthmus.export.reduced import Evaluation
from isthmus.export.reference import Reference

if TYPE_CHECKING:
    import tensorflow as tf

_NUM_SAMPLES = 8


def prepare() -> None:
    """Import what takes long, before the request is there."""
    import tensorflow as tf

    from isthmus.export.tf_half import lowering, saving

    assert tf
    assert lowering
    assert saving


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Lower, add the signatures, save. `folder` is not written to."""
    from isthmus.export.tf_half import lowering, precision, saving

    del folder
    reference = Reference.load(Path(request["reference"]))
    # Warm-up records hold real images, from all over the classes.
    samples = list(reference.encoded[:: max(1, len(reference) // _NUM_SAMPLES)][:_NUM_SAMPLES])

    calibration = Evaluation.load(Path(request["calibration"])) if request.get("calibration") else None
    reducing = {
        "input_size": request["preprocessing"]["input_size"],
        "precision": request.get("precision", "fp32"),
        "calibration": calibration,
    }
    litert_file: dict[str, Any] = {}
    started = time.monotonic()
    seconds = {}

    def lowered() -> Callable[[tf.Tensor], tf.Tensor]:
        function = lowering.lower(Path(request["onnx"]), rung=request["rung"])
        if "tflite" in request:
            litert_file.update(_convert(function, Path(request["tflite"]), **reducing))
        function = precision.reduced(function, **reducing)
        seconds["lower"] = time.monotonic() - started
        return function

    saving.save(
        # No name for it here: what is lowered holds the weights, and `save` frees them when it can.
        lowered(),
        target=Path(request["saved_model"]),
        preprocessing=request["preprocessing"],
        labels=request["labels"],
        head=request["head"],
        warmup_batch_sizes=request["warmup_batch_sizes"],
        sample_images=samples,
    )
    return {
        "seconds": {**seconds, "save": time.monotonic() - started - seconds["lower"]},
        "litert": litert_file,
    }


def _convert(function: Callable[[tf.Tensor], tf.Tensor], target: Path, **reducing: Any) -> dict[str, Any]:
    """What LiteRT's converter made of it, or why it made nothing: then the SavedModel is still written."""
    from isthmus.export.tf_half import litert

    try:
        return litert.convert(function, target, **reducing)
    except ExportError as error:
        return {"problem": str(error)}


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run, prepare=prepare))
