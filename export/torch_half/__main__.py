"""One job of the torch half: checkpoint → reference.npz, model.onnx and the first parity stage.

    python -m isthmus.export.torch_half <job folder>

request.json: {"checkpoint", "data_root", "bundle" (folder to write into), "config" (ExportConfig)}.
result.json: {"stage" (StageResult), "num_images", "unreadable", "exporter", "exporters_tried", "opset",
"simplified", "nodes", "reduced" (see `evaluation.write`)}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from isthmus.export import checkpoint as checkpoints
from isthmus.export.config import ExportConfig
from isthmus.export.jobs import serve_job
from isthmus.export.reference import Reference
from isthmus.export.torch_half import evaluation
from isthmus.export.torch_half import images as evaluation_images
from isthmus.export.torch_half.crossing import cross


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The job, top to bottom. What outlives the export goes to the bundle folder, what does not to `folder`."""
    checkpoint = checkpoints.read(Path(request["checkpoint"]))
    checkpoint.check_weights()
    config = ExportConfig.from_dict(request["config"])
    model_record, data_root, target = checkpoint.model, Path(request["data_root"]), Path(request["bundle"])

    choose = evaluation_images.chooser(checkpoint)
    chosen = choose(
        data_root, split=config.reference_split, labels=model_record["labels"], count=config.reference_images
    )
    taken = evaluation_images.preprocess(chosen, data_root=data_root, preprocessing=checkpoint.preprocessing)

    crossing = cross(checkpoint, taken.images, target / "model.onnx", config, paths=taken.paths)
    reference = Reference(
        images=taken.images,
        pixels=taken.pixels,
        logits=crossing.answers,
        encoded=taken.encoded,
        labels=taken.labels,
        paths=taken.paths,
    )
    reference.save(target / "reference.npz")
    reduced = (
        evaluation.write(checkpoint, config, data_root=data_root, folder=folder) if config.is_reduced else {}
    )
    return {
        "stage": crossing.stage.as_dict(),
        "num_images": len(reference),
        "unreadable": list(taken.unreadable),
        "reduced": reduced,
        **crossing.facts,
    }


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run))
