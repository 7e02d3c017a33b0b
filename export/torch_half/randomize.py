"""Random weights under which numbers mean something: what a coverage run exports.

A freshly built timm model is the worst subject for a parity test. BatchNorms are the identity (mean 0, variance
1, scale 1, shift 0), LayerScale is 1e-6 and last scales of residual branches are 0, so that whole branches
do nothing and a wrong lowering of them changes nothing; class tokens and position tables are 0; and deep nets
without normalisation explode or die. So:

1. Every parameter tensor that is constant gets values: scales (1) uniform in 0.6…1.4, LayerScale and
   other small or zero gains uniform in 0.2…0.8, shifts and biases normal with standard deviation 0.1, tables
   and zero matrices normal with 0.02. Parameters that timm draws at random stay as they are drawn, except for
   heads that it makes a thousand times smaller, to start training with (head_init_scale of BEiT, EVA, Hiera): their
   answers differ from image to image by less than rounding the bias costs. They are scaled up.
2. BatchNorm's running mean and variance become those of real images that pass through the net, layer after layer,
   so that activations neither explode nor vanish; then each mean is moved by a tenth of the deviation and each
   variance scaled by 0.8…1.3: they are not the batch's own. Variances are kept above a tenth of the layer's
   median, or a dead channel would amplify rounding noise.
3. A random deep net can be chaotic: it multiplies rounding errors layer by layer, and then no two correct programs
   agree, nor does torch with itself in double precision. BatchNorm is why: behind a ReLU it multiplies small
   differences by about 1.2 a layer, whatever the weights (Yang et al. 2019, "A mean field theory of batch
   normalization"), so that 60 layers without residual connections (convmixer, inception_v4) turn 6e-8 into 3e-3.
   The factor goes to 1 as the activations come near to linear on what they really get, which training brings
   about and a random draw does not. So the error (DESIGN's rule) of torch in float32 against torch in float64 is
   measured. Above 1e-4, a tenth of the gate, the net is drawn again nearer to that regime: each activation's
   input is moved `shift` standard deviations to the right (a BatchNorm's shift is drawn around it; where a
   convolution or linear layer feeds the activation directly, its bias is set from real images), and residual gains
   are halved, as are the gains of normalised queries: gemma4_vit does not divide their products with the keys by the
   root of the head's size, and drawn around 1 its softmax takes the one largest of 2304 (float32 is 4e-4 away from
   float64; halved, 2e-5). The smallest of the SHIFTS that is enough is taken, else the best. What was taken and what
   was measured stand in the table. Of models with more than 200 million parameters it is not measured: two copies
   would not fit.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from isthmus.export.parity import logit_error

if TYPE_CHECKING:
    import torch

#: Standard deviations by which activations' inputs are off zero, tried in this order.
SHIFTS = (0.0, 0.5, 1.0, 2.0, 3.0)
WELL_CONDITIONED = 1e-4
_MEASURED_UP_TO = 200_000_000
#: Images: enough for a spread between them, and double precision is slow.
_MEASURED_ON = 4

#: A layer's weights are faint when what it gives is less than this part of what it gets; heads become 1.
_FAINT = 0.01

_GAINS = ("gamma", "layer_scale", ".ls", "res_scale", "alpha", "skip_gain")


@dataclass(kw_only=True, frozen=True)
class Randomization:
    """What was done to a model."""

    shift: float
    """The member of SHIFTS that was used."""

    conditioning: float | None
    """Error of float32 against float64; None where the model does not run in float64."""

    batch_norms: int
    """BatchNorm layers with statistics from real images."""

    drawn: int
    """Parameter tensors that were constant, or so small that they as good as were."""

    shifted: int = 0
    """Biases that were moved because an activation follows them directly."""


def randomize(model: torch.nn.Module, images: np.ndarray, *, seed: int = 0) -> Randomization:
    """Give a freshly built model (eval mode) values as the module's docstring says, in place.

    Args:
        model: fp32, on the CPU.
        images: float32 NCHW [N ≥ 2, 3, H, W], real and preprocessed.
        seed: Of everything drawn.
    """
    fresh = copy.deepcopy(model.state_dict())
    tried: list[Randomization] = []
    for shift in SHIFTS:
        model.load_state_dict(fresh)
        tried.append(_randomize(model, images, shift=shift, seed=seed))
        if tried[-1].conditioning is None or tried[-1].conditioning <= WELL_CONDITIONED:
            return tried[-1]
        if not tried[-1].batch_norms and not tried[-1].shifted and shift:
            # Nothing that the shift would change.
            return tried[-1]
    best = min(tried, key=lambda done: done.conditioning or 0.0)
    model.load_state_dict(fresh)
    return _randomize(model, images, shift=best.shift, seed=seed)


def _randomize(model: torch.nn.Module, images: np.ndarray, *, shift: float, seed: int) -> Randomization:
    import torch

    generator = torch.Generator().manual_seed(seed)
    batch = torch.from_numpy(images)
    with torch.no_grad():
        drawn = _draw_constants(model, generator, shift)
        with _shifting(model, shift) as shifted:
            norms = _calibrate(model, batch, generator)
            if shift and not norms:
                model(batch)
    return Randomization(
        shift=shift,
        conditioning=_conditioning(model, batch),
        batch_norms=norms,
        drawn=drawn,
        shifted=len(shifted),
    )


def _draw_constants(model: torch.nn.Module, generator: torch.Generator, shift: float) -> int:
    """Step 1; returns how many tensors were given values."""
    gentle = 0.5 if shift else 1.0
    scaled = _normalization_biases(model)
    drawn = _strengthen_faint_layers(model)
    for name, parameter in model.named_parameters():
        if not parameter.numel() or not parameter.is_floating_point():
            continue
        value = float(parameter.flatten()[0])
        if not bool((parameter == value).all()):
            continue
        drawn += 1
        if name in scaled:
            parameter.normal_(shift, 0.1, generator=generator)
        elif (any(word in f".{name.lower()}" for word in _GAINS) and value != 1.0) or 0 < abs(value) <= 0.1:
            parameter.uniform_(0.2 * gentle, 0.8 * gentle, generator=generator)
        elif value == 1.0:
            narrow = gentle if ".q_norm." in name else 1.0
            parameter.uniform_(0.6 * narrow, 1.4 * narrow, generator=generator)
        elif value == 0.0 and parameter.ndim >= 2:
            parameter.normal_(0, 0.02, generator=generator)
        elif value == 0.0 and name.endswith("weight"):
            # A residual branch's last scale, switched off until training switches it on.
            parameter.uniform_(0.2 * gentle, 0.8 * gentle, generator=generator)
        elif value == 0.0:
            parameter.normal_(0, 0.1, generator=generator)
        else:
            noise = _factors(parameter, generator)
            parameter.mul_(noise)
    return drawn


def _strengthen_faint_layers(model: torch.nn.Module) -> int:
    """Scale faint random weights so that a layer gives as much as it gets; returns how many layers had such."""
    from torch import nn

    strengthened = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.numel() > 1:
            gain = float(module.weight.std()) * math.sqrt(module.weight[0].numel())
            if 0 < gain < _FAINT:
                module.weight.div_(gain)
                strengthened += 1
    return strengthened


def _factors(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Factors 0.7…1.3 of the parameter's shape."""
    import torch

    return torch.empty_like(parameter).uniform_(0.7, 1.3, generator=generator)


def _normalization_biases(model: torch.nn.Module) -> set[str]:
    from torch import nn

    kinds = (nn.modules.batchnorm._BatchNorm,)
    return {f"{name}.bias" for name, module in model.named_modules() if isinstance(module, kinds)}


def _calibrate(model: torch.nn.Module, batch: torch.Tensor, generator: torch.Generator) -> int:
    """Step 2; returns how many BatchNorms there are."""
    import torch
    from torch import nn

    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        deviation = norm.running_var.sqrt()
        norm.running_mean.add_(0.1 * deviation * torch.randn(deviation.shape, generator=generator))
        norm.running_var.mul_(torch.empty_like(deviation).uniform_(0.8, 1.3, generator=generator))
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.median()) + 1e-6)
    return len(norms)


@contextlib.contextmanager
def _shifting(model: torch.nn.Module, shift: float) -> Iterator[set[str]]:
    """While the net runs, move the biases that feed activations directly; yields the names of those moved.

    Layer after layer as the net runs: what a layer is moved by is what the layers before it, already moved, give.
    """
    from torch import nn

    moved: set[str] = set()
    fed: dict[int, tuple[str, nn.Module, torch.Tensor]] = {}
    hooks = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            fed.clear()
            fed[id(output)] = (name, module, output)

        return hook

    def move(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        name, module, output = fed.pop(id(inputs[0]), (None, None, None))
        if name is None or module is None or output is None or name in moved:
            return None
        moved.add(name)
        channels = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
        others = [axis for axis in range(output.ndim) if axis != channels]
        delta = shift * output.std(dim=others) - output.mean(dim=others)
        cast("torch.Tensor", module.bias).add_(delta)
        return (output + delta.reshape([-1 if axis == channels else 1 for axis in range(output.ndim)]),)

    for name, module in model.named_modules() if shift else ():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            hooks.append(module.register_forward_hook(remember(name)))
        elif isinstance(module, nn.ReLU | nn.GELU | nn.SiLU | nn.LeakyReLU | nn.Hardswish | nn.Mish):
            hooks.append(module.register_forward_pre_hook(move))
    try:
        yield moved
    finally:
        for hook in hooks:
            hook.remove()


def _conditioning(model: torch.nn.Module, batch: torch.Tensor) -> float | None:
    """Step 3: error of float32 against float64 under the parity rule."""
    import torch

    if sum(parameter.numel() for parameter in model.parameters()) > _MEASURED_UP_TO:
        return None
    batch = batch[:_MEASURED_ON]
    with torch.inference_mode():
        single = model(batch)
        if not isinstance(single, torch.Tensor) or single.ndim != 2:
            return None
        try:
            double = copy.deepcopy(model).double()(batch.double())
        except RuntimeError:
            # Some models make float32 tables while they run.
            return None
    error = logit_error(double.numpy(), single.numpy())
    return error if math.isfinite(error) else 1e9
