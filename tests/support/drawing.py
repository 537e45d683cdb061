"""Which input pixels a network sees: measured by gradients, with nothing in the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def transparent(network: nn.Module) -> nn.Module:
    """The network in float64 with averaging weights and average pooling, in place.

    All weights are positive, so nothing cancels, and averages let every pixel through where a maximum would
    choose one: the gradient is zero exactly where no path leads.
    """
    network.double().eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MaxPool2d):
            owner, _, attribute = name.rpartition(".")
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            setattr(network.get_submodule(owner), attribute, pool)
    return network


def seen_rows(network: nn.Module, pixels: Tensor, positions: range) -> list[tuple[int, int]]:
    """First and last row of `pixels` that affect each output row of `positions`."""
    pixels = pixels.requires_grad_()
    rows = network(pixels).sum((0, 1, 3))
    spans = []
    for position in positions:
        (gradient,) = torch.autograd.grad(rows[position], pixels, retain_graph=True)
        touched = gradient.abs().sum((0, 1, 3)).nonzero()
        spans.append((int(touched.min()), int(touched.max())))
    return spans
