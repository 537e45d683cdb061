"""An exponential moving average of a network's weights, which is validated and saved in place of the last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """`average = d * average + (1 - d) * weights` after each optimiser step (Polyak & Juditsky 1992; EMA form).

    Early on the weights change fast, so the decay grows: `d = min(decay, (1 + t) / (10 + t))` at step `t` from 1,
    as `num_updates` of TensorFlow's ExponentialMovingAverage does. Means and variances of batch norm are averaged
    like weights, so they belong to about the same steps; what is no float (batches seen) is copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay
        pairs = list(zip(_state(self.network), _state(network), strict=True))
        self._mixed = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1 over the whole run."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([mine for mine, _ in self._mixed], [theirs for _, theirs in self._mixed], share)
        for mine, theirs in self._copied:
            mine.copy_(theirs)


def _state(network: nn.Module) -> list[Tensor]:
    """The live tensors of a network: parameters and buffers, in one order."""
    return list(network.state_dict(keep_vars=True).values())
