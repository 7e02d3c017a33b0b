"""One job of a coverage run's torch half: a family of timm → a randomised checkpoint, reference and model.onnx.

    python -m isthmus.export.torch_half.coverage <job folder>

request.json: {"families": true} for the list of all; else {"family" (module or model name), "images" (folder),
"bundle" (folder to write into), "config" (ExportConfig), "num_images"}.
result.json: {"families"}; else {"choice", "weights_bytes", "model", "preprocessing", "randomization", "stage"}.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.checkpoint import SCHEMA_VERSION, Checkpoint
from isthmus.export.config import ExportConfig
from isthmus.export.errors import ExportError
from isthmus.export.jobs import append_progress, serve_job
from isthmus.export.reference import Reference
from isthmus.export.torch_half import images as evaluation_images
from isthmus.export.torch_half import zoo
from isthmus.export.torch_half.crossing import cross
from isthmus.export.torch_half.model import to_nchw
from isthmus.export.torch_half.randomize import randomize
from isthmus.lineage.files import sha256_file

if TYPE_CHECKING:
    import torch

NUM_CLASSES = 100
_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The job, top to bottom."""
    if request.get("families"):
        return {"families": zoo.families()}
    config, target = ExportConfig.from_dict(request["config"]), Path(request["bundle"])
    choice = zoo.choose(request["family"], num_classes=NUM_CLASSES)
    append_progress(folder, {"choice": choice.as_dict()})
    model = _build(choice.model, choice.args)
    preprocessing = _preprocessing(model)
    files = evaluation_images.choose_anywhere(
        Path(request["images"]), split="test", labels=[], count=evaluation_images.MIN_IMAGES
    )
    taken = evaluation_images.preprocess(
        files, data_root=Path(request["images"]), preprocessing=preprocessing
    )
    count = request["num_images"]
    images = taken.images[:count]
    done = randomize(model, to_nchw(images))
    checkpoint = _write_checkpoint(folder / "checkpoint", model, choice, preprocessing)
    del model
    crossing = cross(checkpoint, images, target / "model.onnx", config, paths=taken.paths[:count])
    reference = Reference(
        images=images,
        pixels=taken.pixels[:count],
        logits=crossing.answers,
        encoded=taken.encoded[:count],
        labels=taken.labels[:count],
        paths=taken.paths[:count],
    )
    reference.save(target / "reference.npz")
    return {
        "choice": choice.as_dict(),
        "weights_bytes": checkpoint.weights.stat().st_size,
        "model": checkpoint.model,
        "preprocessing": preprocessing,
        "randomization": asdict(done),
        "stage": crossing.stage.as_dict(),
        **crossing.facts,
    }


def _build(name: str, args: dict[str, Any]) -> torch.nn.Module:
    import timm
    import torch

    torch.manual_seed(0)
    try:
        return timm.create_model(name, pretrained=False, num_classes=NUM_CLASSES, **args).eval()
    except Exception as error:
        raise ExportError(f"timm cannot build {name}: {error}") from error


def _preprocessing(model: torch.nn.Module) -> dict[str, Any]:
    from timm.data import resolve_data_config

    resolved = resolve_data_config({}, model=model)
    return {key: list(value) if isinstance(value := resolved[key], tuple) else value for key in _KEYS}


def _write_checkpoint(
    folder: Path, model: torch.nn.Module, choice: zoo.Choice, preprocessing: dict[str, Any]
) -> Checkpoint:
    from safetensors.torch import save_file

    folder.mkdir()
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    record = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": sha256_file(folder / "model.safetensors"),
        "model": {
            "name": choice.model,
            "args": choice.args,
            "num_classes": NUM_CLASSES,
            "input_size": preprocessing["input_size"],
            "head": "single_label",
            "labels": [f"class {index}" for index in range(NUM_CLASSES)],
        },
        "preprocessing": preprocessing,
    }
    return Checkpoint(path=folder, record=record)


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run))
