"""A checkpoint's timm model, for two purposes: the reference answers, and the ONNX graph."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np

from isthmus.export.checkpoint import Checkpoint
from isthmus.export.errors import ExportError

if TYPE_CHECKING:
    import torch

_CHUNK = 16


def load_model(checkpoint: Checkpoint, *, exportable: bool) -> torch.nn.Module:
    """The checkpoint's model with its weights, in eval mode, fp32, on the CPU.

    Args:
        checkpoint: Read by `checkpoint.read`.
        exportable: False: exactly what training evaluated. True: timm's layers in their exportable form
            (static padding, no scripted activations, attention written out), for a tracer; and what timm has no
            such form of, in one of ours (exportable.py).

    Raises:
        ExportError: timm does not know the model, or the weights do not fit it.
    """
    import timm
    from safetensors.torch import load_file
    from timm.layers import set_fused_attn, use_fused_attn

    record = checkpoint.model
    name = record["name"]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ExportError(f"timm {timm.__version__} has no model {name!r}; the nearest names are {near}")
    arguments = {**record["args"], "num_classes": record["num_classes"]}
    fused = use_fused_attn()
    set_fused_attn(fused and not exportable)
    try:
        model = timm.create_model(name, pretrained=False, exportable=exportable or None, **arguments)
    except Exception as error:
        raise ExportError(f"timm cannot build {name} with {arguments}: {error}") from error
    finally:
        set_fused_attn(bool(fused))
    try:
        model.load_state_dict(load_file(checkpoint.weights, device="cpu"), strict=True)
    except Exception as error:
        text = str(error).split("\n", 3)[:3]
        raise ExportError(
            f"{checkpoint.weights} does not fit {name}: {' '.join(line.strip() for line in text)}"
        ) from error
    model = model.float().eval()
    if exportable:
        # timm's layers are imported only where they are needed, as timm is.
        from isthmus.export.torch_half.exportable import replace_unexportable

        replace_unexportable(model)
    return model


def logits(model: torch.nn.Module, images: np.ndarray, *, num_classes: int) -> np.ndarray:
    """float32 [N, num_classes] for float32 NHWC images [N, H, W, 3].

    Raises:
        ExportError: The model answers with something else than one tensor of logits.
    """
    import torch

    answers = []
    with torch.inference_mode():
        for start in range(0, len(images), _CHUNK):
            batch = torch.from_numpy(to_nchw(images[start : start + _CHUNK]))
            try:
                answer = model(batch)
            except Exception as error:
                raise ExportError(
                    f"the model does not take images of shape {tuple(batch.shape)}: {error}"
                ) from error
            if not isinstance(answer, torch.Tensor):
                raise ExportError(
                    f"the model's forward gives a {type(answer).__name__}, not a tensor of logits; "
                    "the bridge carries classifiers (no features_only, no detection heads)"
                )
            if tuple(answer.shape) != (len(batch), num_classes):
                raise ExportError(
                    f"the model's forward gives shape {tuple(answer.shape)} for {len(batch)} images; "
                    f"logits of shape ({len(batch)}, {num_classes}) are wanted"
                )
            answers.append(answer.float().numpy())
    return np.concatenate(answers)


def to_nchw(images: np.ndarray) -> np.ndarray:
    """torch's layout of NHWC images."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
