"""Losses: logits and targets in, one number to minimise out; pixels that do not count have no influence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.training.settings import LossSpec

DICE_SMOOTHING = 1.0
"""Added to both sides of the Dice ratio (in pixels): an empty class that is predicted empty costs nothing."""


def bce_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean binary cross-entropy: `-mean(t log p + (1 - t) log(1 - p))` over counted pixels; 0 when there are none.

    Args:
        logits: `(N, classes, H, W)` float, `p = sigmoid(logits)`.
        target: same shape, 0 or 1 where counted.
        counted: same shape, bool.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, with plain sums): `mean over classes of 1 - (2 I + s) / (P + T + s)`.

    `I = sum(p t)`, `P = sum(p)`, `T = sum(t)` over the counted pixels of the whole batch, `s` the smoothing.

    Args:
        logits: `(N, classes, H, W)` float.
        target: same shape, 0 or 1 where counted.
        counted: same shape, bool.
    """
    probabilities = torch.where(counted, logits.sigmoid(), 0)
    target = torch.where(counted, target, 0)
    axes = (0, 2, 3)
    both = (probabilities * target).sum(axes)
    either = probabilities.sum(axes) + target.sum(axes)
    return (1 - (2 * both + DICE_SMOOTHING) / (either + DICE_SMOOTHING)).mean()


def segmentation_loss(logits: Tensor, target: Tensor, counted: Tensor, *, spec: LossSpec) -> Tensor:
    """`bce_weight * bce_loss + dice_weight * dice_loss`, in float32 whatever the network computes in."""
    logits = logits.float()
    loss = logits.new_zeros(())
    if spec.bce_weight:
        loss = loss + spec.bce_weight * bce_loss(logits, target, counted)
    if spec.dice_weight:
        loss = loss + spec.dice_weight * dice_loss(logits, target, counted)
    return loss
