"""Models that were trained elsewhere: a timm model with a weights file, or an ONNX file.

Either becomes a checkpoint folder as training would have left it, except that nothing is known about its data
and its training; from there it crosses the same bridge, through the same gates.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.export import bundle as bundles
from isthmus.export import checkpoint as checkpoints
from isthmus.export import external_data
from isthmus.export import manifest as manifests
from isthmus.export.errors import ExportError
from isthmus.export.jobs import JobRunner
from isthmus.export.photographs import SOURCE as PHOTOGRAPHS
from isthmus.export.photographs import folder_of_windows
from isthmus.export.staging import staging
from isthmus.lineage.files import canonical_json, publish_directory, sha256_file, sha256_text

log = logging.getLogger(__name__)

ADOPT_MODULE = "isthmus.export.torch_half.adopt"
#: Counts the ways in which ONNX files were read: what an earlier one made of a file is not known again.
_READING = 2


@dataclass(kw_only=True)
class Origin:
    """What came from elsewhere, and what only its owner can say about it."""

    architecture: str | None = None
    """A timm model name; None for an ONNX file."""

    weights: Path | None = None
    """Its state dict, .safetensors or what torch.save wrote; None: timm's pretrained weights (a download)."""

    onnx: Path | None = None
    """An ONNX file with one image input; None for a timm model."""

    onnx_output: str | None = None
    """Which of the ONNX file's outputs holds the logits; needed where there are several."""

    labels: Path | None = None
    """A text file, one class name a line. None: ImageNet's names where there are 1,000 classes and timm knows
    their order, else the numbers from 0."""

    head: str | None = None
    """"single_label" (softmax) or "multi_label" (sigmoid); None: single, or what the ONNX graph ends with."""

    args: dict[str, Any] = field(default_factory=dict)
    """Handed to timm.create_model."""

    preprocessing: dict[str, Any] = field(default_factory=dict)
    """Of input_size, mean, std, interpolation, crop_pct, crop_mode those that are given. The rest is timm's
    configuration of the model; for an ONNX file ImageNet's mean and std, bicubic, 0.875, center."""

    @property
    def file(self) -> Path | None:
        """The file that holds the weights, if there is one."""
        return self.onnx or self.weights


@dataclass(kw_only=True, frozen=True)
class ReferenceImages:
    """Where the real images come from that parity is measured on."""

    root: Path
    """Folder; any layout, or with train, val and test below it."""

    source: str
    """For the manifest."""


def reference_images(images: Path | None, *, home: Path) -> ReferenceImages:
    """The given folder, or else windows of scikit-learn's photographs.

    Raises:
        ExportError: The folder is not one.
    """
    if images is None:
        return ReferenceImages(root=folder_of_windows(home), source=PHOTOGRAPHS)
    if not images.is_dir():
        raise ExportError(f"--images {images} is not a folder; give one with at least 16 images")
    return ReferenceImages(root=images.resolve(), source="images given by the user")


def adopt(origin: Origin, *, name: str, home: Path, timeout_s: float) -> Path:
    """Make a checkpoint folder of it, or find the one that was made of the same before.

    Raises:
        ExportError: A file that is missing, damaged, or not the weights of that model; an ONNX graph that is
            no image classifier or uses operators that are not ONNX's own.
    """
    for what, file in (("--weights", origin.weights), ("--onnx", origin.onnx), ("--labels", origin.labels)):
        if file is not None and not file.is_file():
            raise ExportError(f"{what} {file} is not a file")
    fingerprint = _fingerprint(origin)
    folder = home.absolute() / "checkpoints" / name
    if known := _find(folder, fingerprint):
        log.info("known already: %s", known)
        return known
    checkpoint_id = bundles.new_id()
    log_path = home.absolute() / "logs" / f"adopt-{name}-{checkpoint_id}.log"
    with staging(folder) as stage:
        runner = JobRunner(log_path=log_path, timeout_s=timeout_s, keep_open=(stage.lock,))
        made = stage.path / "checkpoint"
        request = {
            "name": name,
            "origin": manifests.plain(asdict(origin)),
            "target": str(made),
            "fingerprint": fingerprint,
        }
        answer = runner.run(ADOPT_MODULE, stage.path / "adopt", request)
        for line in answer["said"]:
            log.info("%s", line)
        target = folder / checkpoint_id
        publish_directory(made, target)
    log.info("checkpoint of what was trained elsewhere: %s", target)
    return target


def _fingerprint(origin: Origin) -> str:
    def digest(file: Path | None) -> str | None:
        return sha256_file(file) if file is not None else None

    values = {
        **asdict(origin),
        "weights": digest(origin.weights),
        "onnx": digest(origin.onnx),
        "labels": digest(origin.labels),
        # The record names the file; the same bytes elsewhere are another origin.
        "file": str(origin.file.resolve()) if origin.file else None,
        "beside": external_data.digests(origin.onnx) if origin.onnx else {},
        "timm": manifests.versions().get("timm"),
        "schema": checkpoints.SCHEMA_VERSION,
        "reading": _READING if origin.onnx else None,
    }
    return sha256_text(canonical_json(manifests.plain(values)))


def _find(folder: Path, fingerprint: str) -> Path | None:
    for path in sorted(folder.glob("[0-9]*"), reverse=True):
        try:
            known = checkpoints.read(path)
            if known.record.get("fingerprint") == fingerprint:
                known.check_weights()
                return known.path
        except ExportError:
            continue
    return None
