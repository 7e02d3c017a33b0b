"""Layers of timm that no exporter carries with a dynamic batch, in a form that says the same and crosses.

timm's own exportable layers (`exportable=True`) come first; here is what they leave out. A replaced layer answers
what it answered, up to rounding: parity measures it against the model as it was trained.
"""

from __future__ import annotations

from functools import reduce

import torch
from timm.layers import CondConv2d, pad_same
from torch import nn
from torch.nn import functional


def replace_unexportable(model: nn.Module) -> nn.Module:
    """`model`, changed in place: every layer that has an exportable form here is in that form."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CondConv2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, MixtureConv2d(layer))
    return model


class MixtureConv2d(nn.Module):
    """timm's CondConv2d: each image is convolved with its own mixture of the experts' kernels.

    timm lays the images of a batch side by side as channels and convolves them in as many groups. The number of
    groups is a constant of ONNX's Conv, so such a graph would be one of a single batch size. A convolution is linear
    in its kernel: a pointwise one is a product with each image's own matrix; of the others the answers of the
    experts are mixed, not their kernels.
    """

    def __init__(self, layer: CondConv2d) -> None:
        """Takes over the weights of `layer`."""
        super().__init__()
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding = (0, 0) if layer.dynamic_padding else layer.padding
        self.pads_same = layer.dynamic_padding
        kernels = layer.weight.detach().reshape(layer.num_experts, *layer.weight_shape)
        self.register_buffer("kernels", kernels)
        self.register_buffer("biases", None if layer.bias is None else layer.bias.detach())
        self.is_pointwise = (
            self.groups == 1
            and (*layer.kernel_size, *self.stride) == (1, 1, 1, 1)
            and tuple(layer.padding) == (0, 0)
        )

    def forward(self, images: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        """Float [N, C, H, W] and the experts' shares [N, E] → [N, C', H', W']."""
        mixed = self._pointwise(images, routing) if self.is_pointwise else self._general(images, routing)
        if self.biases is None:
            return mixed
        return mixed + (routing @ self.biases)[:, :, None, None]

    def _pointwise(self, images: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        matrices = self.kernels.flatten(2)
        _, outputs, inputs = matrices.shape
        own = (routing @ matrices.flatten(1)).reshape(-1, outputs, inputs)
        return (own @ images.flatten(2)).reshape(-1, outputs, *images.shape[2:])

    def _general(self, images: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        if self.pads_same:
            images = pad_same(images, self.kernels.shape[-2:], self.stride, self.dilation)
        answers = [
            functional.conv2d(images, kernel, None, self.stride, self.padding, self.dilation, self.groups)
            for kernel in self.kernels
        ]
        return reduce(
            torch.add,
            (routing[:, expert, None, None, None] * answer for expert, answer in enumerate(answers)),
        )
