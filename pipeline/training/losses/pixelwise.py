"""Pixelwise losses: binary cross-entropy, cross-entropy and focal loss.

All are weighted means over the valid pixels, `sum(w l) / sum(w)`; with equal weights a plain mean.
`t` is the target (0 or 1), `p` the probability, `z` the logit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.training.losses.inputs import LossInput

MIN_MISS = 1e-12
"""Lower bound of `1 - p_t` in focal loss: at 0, a power under 1 has an infinite slope."""


def bce(inputs: LossInput, *, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, `l = -(t' log p + (1 - t') log(1 - p))` with `p = sigmoid(z)`; independent classes.

    `t' = t (1 - smoothing) + smoothing / 2`: label smoothing (Szegedy et al. 2016, section 7) with both
    answers equally likely beforehand. Computed from logits as `max(z, 0) - z t' + log(1 + exp(-|z|))`, which
    neither overflows nor loses digits.
    """
    target = inputs.target * (1 - smoothing) + smoothing / 2 if smoothing else inputs.target
    return inputs.mean_over_pixels(functional.binary_cross_entropy_with_logits(inputs.logits, target, reduction="none"))


def cross_entropy(inputs: LossInput, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of exclusive classes, `l = -sum over outputs of t'_k log p_k` with `p = softmax(z)`.

    `t'_k = t_k (1 - smoothing) + smoothing / outputs`: label smoothing (Szegedy et al. 2016, section 7).
    A pixel weighs what its true output weighs.
    """
    target = inputs.target * (1 - smoothing) + smoothing / inputs.target.shape[1] if smoothing else inputs.target
    return inputs.mean_over_pixels(-(target * inputs.logits.log_softmax(1)).sum(1, keepdim=True))


def focal(inputs: LossInput, *, gamma: float, alpha: float | None) -> Tensor:
    """Focal loss (Lin et al. 2017, equation 5): `l = -alpha_t (1 - p_t)**gamma log p_t`.

    `p_t` is the probability of the true label: `p` where `t = 1`, `1 - p` where `t = 0`; for exclusive classes
    that of the true output. `gamma = 0` is cross-entropy. The paper divides by the number of objects; here it
    is a mean over pixels, like the other terms. `alpha_t` is `alpha` where `t = 1` and `1 - alpha` where `t = 0`; with
    None, and for exclusive classes always, 1. The paper's best are gamma 2 and alpha 0.25.
    """
    entropy = _true_entropy(inputs)
    losses = (-torch.expm1(-entropy)).clamp(min=MIN_MISS).pow(gamma) * entropy
    if alpha is not None and not inputs.exclusive:
        losses = losses * torch.where(inputs.target > 0, alpha, 1 - alpha)
    return inputs.mean_over_pixels(losses)


def _true_entropy(inputs: LossInput) -> Tensor:
    """`-log p_t`: `(N, outputs, H, W)` for independent, `(N, 1, H, W)` for exclusive classes."""
    if inputs.exclusive:
        return -(inputs.target * inputs.logits.log_softmax(1)).sum(1, keepdim=True)
    return functional.binary_cross_entropy_with_logits(inputs.logits, inputs.target, reduction="none")
