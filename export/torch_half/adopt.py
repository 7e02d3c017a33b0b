"""One job of the torch half: a model from elsewhere → a checkpoint folder.

    python -m isthmus.export.torch_half.adopt <job folder>

request.json: {"name", "origin" (elsewhere.Origin), "target" (folder to make), "fingerprint"}.
result.json: {"said": lines for the user}.
"""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.checkpoint import SCHEMA_VERSION
from isthmus.export.errors import ExportError
from isthmus.export.jobs import serve_job
from isthmus.export.manifest import versions
from isthmus.export.torch_half import foreign_onnx
from isthmus.export.torch_half import weights as weights_files
from isthmus.lineage.files import sha256_file, write_json

if TYPE_CHECKING:
    import torch

_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Adopt one model. `folder` is not written to; the request's target is."""
    del folder
    origin, target = request["origin"], Path(request["target"])
    target.mkdir(parents=True)
    adopted = _adopt_onnx(origin, target) if origin["onnx"] else _adopt_timm(origin, target)
    model, preprocessing, weights, facts, said = adopted
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": request["name"],
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "weights_sha256": sha256_file(weights),
        "fingerprint": request["fingerprint"],
        "model": model,
        "preprocessing": preprocessing,
        # What it was trained on is not known here.
        "dataset": {
            "name": "unknown",
            "source": "trained elsewhere",
            "root": None,
            "digest": None,
            "splits": {},
            "labels": model["labels"],
        },
        "recipe": {},
        "metrics": {},
        "source": {"commit": None, "dirty": None, "remote": None},
        "versions": versions(),
        "mlflow": {},
        "origin": facts,
    }
    write_json(target / "checkpoint.json", record)
    return {"said": said}


_Adopted = tuple[dict[str, Any], dict[str, Any], Path, dict[str, Any], list[str]]


def _adopt_timm(origin: dict[str, Any], target: Path) -> _Adopted:
    """(model, preprocessing, weights, facts, lines for the user) of a timm model."""
    import timm
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg, save_for_hf

    architecture, given = origin["architecture"], _given(origin)
    base = architecture.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
        raise ExportError(
            f"timm {timm.__version__} has no model {base!r}; "
            f"{'nearest: ' + ', '.join(near) if near else 'timm.list_models() has them all'}"
        )
    known = get_pretrained_cfg(architecture, allow_unregistered=True)
    args = dict(origin["args"])
    if "input_size" in given and known is not None and known.fixed_input_size:
        args = {"img_size": given["input_size"][1:], **args}
    classifier = known.classifier if known is not None else None
    model, facts, said = _timm_model(origin, args, classifier=classifier)
    resolved = resolve_data_config(given, model=model)
    preprocessing = {key: _plain(resolved[key]) for key in _KEYS}
    labels = _labels(origin, model.num_classes, cfg=dict(model.pretrained_cfg))
    try:
        save_for_hf(
            model,
            str(target),
            model_config={"label_names": labels},
            model_args=args,
            safe_serialization=True,
            data_config=preprocessing,
        )
    except ValueError as error:
        # It holds the preprocessing against the model that the arguments made.
        raise ExportError(
            f"{architecture} with {args}: {_line(error)} Images are RGB, of model.input_size "
            f"(--set model.input_size=[3,H,W])"
        ) from error
    record = {
        "name": base,
        "args": args,
        "pretrained_tag": None if origin["weights"] else (model.pretrained_cfg or {}).get("tag"),
        "num_classes": model.num_classes,
        "input_size": preprocessing["input_size"],
        "head": origin["head"] or "single_label",
        "labels": labels,
    }
    return record, preprocessing, target / "model.safetensors", facts, said


def _timm_model(
    origin: dict[str, Any], args: dict[str, Any], *, classifier: str | tuple[str, ...] | None
) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """(model with its weights, facts, lines for the user); `classifier` is how timm calls the last layer."""
    architecture = origin["architecture"]
    facts = {"kind": "timm", "architecture": architecture, "file": None, "file_sha256": None}
    if not origin["weights"]:
        model = _build(architecture, args, pretrained=True)
        _check_is_classifier(model, architecture)
        return model, {**facts, "weights": "timm's pretrained weights"}, []
    file, base = Path(origin["weights"]), architecture.partition(".")[0]
    state, wrapper = weights_files.read_state_dict(file)
    classes = weights_files.num_classes(state, classifier)
    model = _build(base, {**args, **({"num_classes": classes} if classes else {})}, pretrained=False)
    _check_is_classifier(model, architecture)
    called = f"{base} with {model.num_classes} classes"
    facts |= {
        "file": str(file.resolve()),
        "file_sha256": sha256_file(file),
        "wrapper": wrapper,
        "renamed_by_timm": weights_files.load_into(model, state, file=file, called=called),
    }
    said = f"{len(state)} tensors of {file} fit {called}{f' (from {wrapper!r})' if wrapper else ''}"
    return model, facts, [said]


def _check_is_classifier(model: torch.nn.Module, architecture: str) -> None:
    classes = getattr(model, "num_classes", None)
    if not classes:
        what = "0 classes" if classes == 0 else f"a {type(model).__name__}"
        raise ExportError(f"{architecture} has no classifier ({what}); the bridge carries classifiers")


def _build(name: str, args: dict[str, Any], *, pretrained: bool) -> torch.nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **args).eval()
    except Exception as error:
        # A download fails in the ways of whatever library timm downloads with.
        what = (
            f"has no pretrained weights of {name} here" if pretrained else f"cannot build {name} with {args}"
        )
        hint = "; give a file with --weights" if pretrained else ""
        raise ExportError(f"timm {what}: {_line(error)}{hint}") from error


def _adopt_onnx(origin: dict[str, Any], target: Path) -> _Adopted:
    """(model, preprocessing, weights, facts, lines for the user) of an ONNX file."""
    given, file = _given(origin), Path(origin["onnx"])
    found = foreign_onnx.read(file, output=origin["onnx_output"], input_size=given.get("input_size"))
    said = list(found.notes)
    preprocessing = {
        "input_size": list(found.input_size),
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.875,
        "crop_mode": "center",
        **{key: value for key, value in given.items() if key != "input_size"},
    }
    if assumed := [key for key in _KEYS[1:] if key not in given]:
        said.append(
            f"an ONNX file does not say how images reach it; assumed: "
            f"{', '.join(f'{key} {preprocessing[key]}' for key in assumed)} (--set model.{assumed[0]}=…)"
        )
    found.save(target / "model.onnx")
    labels = _labels(origin, found.num_classes, cfg={})
    record = {
        "name": f"onnx:{file.stem}",
        "args": {},
        "pretrained_tag": None,
        "num_classes": found.num_classes,
        "input_size": preprocessing["input_size"],
        "head": origin["head"] or found.head,
        "labels": labels,
    }
    facts = {
        "kind": "onnx",
        "file": str(file.resolve()),
        "file_sha256": sha256_file(file),
        "head_given": origin["head"] is not None,
        **found.facts,
    }
    return record, preprocessing, target / "model.onnx", facts, said


def _given(origin: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in origin["preprocessing"].items() if value is not None}


def _labels(origin: dict[str, Any], num_classes: int, *, cfg: dict[str, Any]) -> list[str]:
    """Class names by index, each different."""
    if origin["labels"]:
        file = Path(origin["labels"])
        try:
            labels = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"--labels {file} cannot be read: {error}") from error
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if len(labels) != num_classes or twice:
            raise ExportError(
                f"--labels {file} has {len(labels)} names{f', {twice[0]!r} more than once' if twice else ''}; "
                f"the model has {num_classes} classes: one different name a line"
            )
        return labels
    return _imagenet_labels(cfg, num_classes) or [str(index) for index in range(num_classes)]


def _imagenet_labels(cfg: dict[str, Any], num_classes: int) -> list[str] | None:
    """ImageNet's class names, for a timm model that still has timm's own number of classes."""
    from timm.data import ImageNetInfo

    if num_classes != 1000 or cfg.get("num_classes") != 1000:
        return None
    info = ImageNetInfo("imagenet-1k")
    names = [str(info.index_to_description(index)).split(",")[0] for index in range(num_classes)]
    count = Counter(names)
    # Two kinds of crane, two of maillot.
    return [
        name if count[name] == 1 else f"{name} ({info.index_to_label_name(index)})"
        for index, name in enumerate(names)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run))
