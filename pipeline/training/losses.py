"""Losses: logits and targets in, one number to minimise out; pixels that do not count have no influence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import SettingsError

DICE_SMOOTHING = 1.0
"""Added to both sides of the Dice ratio (in pixels): an empty class that is predicted empty costs nothing."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """`bce_weight * BCE + dice_weight * Dice`."""

    bce_weight: float = 1.0
    """Weight of binary cross-entropy, at least 0."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss, at least 0; one of the two weights must be above 0."""

    def __post_init__(self) -> None:
        if min(self.bce_weight, self.dice_weight) < 0 or self.bce_weight + self.dice_weight <= 0:
            raise SettingsError(
                f"bce_weight and dice_weight must be >= 0 and not both 0, not {self.bce_weight} and {self.dice_weight}"
            )


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
