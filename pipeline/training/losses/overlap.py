"""Overlap losses: Dice, Tversky, focal Tversky and Lovász.

All pool the pixels of the whole batch and are means over classes. The background of exclusive classes is not part of
the mean (as in nnU-Net, Isensee et al. 2021), since the classes already determine `1 - background`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.training.losses.inputs import SMOOTHING, LossInput

MIN_MISS = 1e-6
"""Focal Tversky loss treats smaller values of `1 - TI` as 0, where its slope would be infinite."""


def dice(inputs: LossInput) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, with plain sums): `1 - (2 I + s) / (P + T + s)`, mean over classes.

    `I = sum(p t)`, `P = sum(p)`, `T = sum(t)`, `s` the smoothing.
    """
    counts = inputs.overlap
    ratio = (2 * counts.intersection + SMOOTHING) / (counts.predicted + counts.target + SMOOTHING)
    return inputs.mean_over_classes(1 - ratio)


def tversky(inputs: LossInput, *, alpha: float, beta: float) -> Tensor:
    """Tversky loss (Salehi et al. 2017, equation 4): `1 - TI`, mean over classes.

    `TI = (I + s) / (I + alpha FP + beta FN + s)` with `FP = sum(p (1 - t))`, `FN = sum((1 - p) t)`, `s` the
    smoothing; `alpha = beta = 0.5` is Dice, `beta > alpha` favours recall.
    """
    return inputs.mean_over_classes(1 - inputs.overlap.tversky_index(alpha, beta))


def focal_tversky(inputs: LossInput, *, alpha: float, beta: float, gamma: float) -> Tensor:
    """Focal Tversky loss (Abraham & Khan 2019, equation 4): `(1 - TI)**(1 / gamma)`, mean over classes.

    `TI` as in `tversky`, whose alpha and beta keep their meaning here (the paper swaps the two letters).
    `gamma > 1` (the paper's best is 4/3) keeps the pull on a class that is nearly right, `gamma = 1` is Tversky.
    """
    miss = 1 - inputs.overlap.tversky_index(alpha, beta)
    power = miss.clamp(min=MIN_MISS).pow(1 / gamma)
    return inputs.mean_over_classes(torch.where(miss > MIN_MISS, power, 0))


def lovasz(inputs: LossInput) -> Tensor:
    """Lovász extension of the Jaccard loss `1 - IoU` (Berman et al. 2018), mean over classes.

    Per class, with the errors `m` in falling order: `sum of relu(m_i) * (J_i - J_{i-1})`, where
    `J_i = 1 - (T - true pixels among the first i) / (T + false pixels among the first i)` is the Jaccard loss when
    exactly the first `i` pixels are wrong. Errors are hinges `1 - z (2 t - 1)` for independent classes (Lovász
    hinge, equation 8) and `|t - p|` for exclusive ones (Lovász softmax, equation 12). A class without a true pixel
    costs its largest error.

    Costs a sort of the valid pixels of each class (n log n): about 0.06 s per million, forward and backward, on one
    CPU core. Satisfied hinges contribute 0 and are not sorted.
    """
    rows = range(inputs.logits.shape[1])
    return inputs.mean_over_classes(torch.stack([_lovasz_of_class(inputs, k) for k in rows]))


def _lovasz_of_class(inputs: LossInput, k: int) -> Tensor:
    if inputs.exclusive and k == 0:
        return inputs.logits.new_zeros(())
    truth = inputs.target[:, k].flatten()
    if inputs.exclusive:
        errors = (truth - inputs.probabilities[:, k].flatten()).abs()
    else:
        errors = 1 - inputs.logits[:, k].flatten() * (2 * truth - 1)
    order = _descending_order(errors.detach(), inputs.valid[:, k].flatten())
    return (errors.gather(0, order) * _jaccard_steps(truth[order] > 0, (truth > 0).sum())).sum()


def _descending_order(errors: Tensor, valid: Tensor) -> Tensor:
    """Indices of the valid errors above 0, largest first; by numpy on the CPU, where torch takes 7 times as long."""
    wrong = (valid & (errors > 0)).nonzero().flatten()
    if errors.device.type == "cpu":
        return wrong[torch.from_numpy(np.argsort(-errors[wrong].numpy()))]
    return wrong[errors[wrong].argsort(descending=True)]


def _jaccard_steps(truth: Tensor, total: Tensor) -> Tensor:
    """`J_i - J_{i-1}` for pixels in falling order of error, of which `total` in all are of the class.

    In closed form, to avoid the cancellation of two numbers near 1: with the union `U = T + false positives` and the
    intersection `I` after pixel i, it is `1 / U` for a pixel of the class, else `I / (U (U - 1))`, or 1 for the first
    false positive of a class that has no pixel.
    """
    lost = truth.cumsum(0)
    union = total + torch.arange(1, len(truth) + 1, device=truth.device) - lost
    false_positive = (total - lost) / (union * (union - 1).clamp(min=1))
    return torch.where(truth | (union == 1), 1 / union, false_positive)
