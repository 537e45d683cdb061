"""Loss function as a weighted sum of terms.

Each term is a function with its formula in `pixelwise` or `overlap`. Pixels that are nodata or unlabelled influence
neither the value nor any gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.model import Activation
from pipeline.training.losses.inputs import LossInput, resolve_weights
from pipeline.training.losses.overlap import dice, focal_tversky, lovasz, tversky
from pipeline.training.losses.pixelwise import bce, cross_entropy, focal
from pipeline.training.settings.losses import LossSpec

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(logits, target, valid) -> scalar`, all `(N, outputs, H, W)`: any float type, 0/1 where valid, bool."""


def make_loss(spec: LossSpec, *, activation: Activation, class_share: Sequence[float]) -> Loss:
    """The loss function of `spec`, computed in float32 for any type of logits; 0 when no pixel is valid.

    `loss(logits, target, valid) = sum over terms of weight * term`. For exclusive classes (`softmax`) the
    outputs are the background and the classes, and `bce` stands for `cross_entropy`, its counterpart there.
    `class_share` holds the share of training pixels of each class, 0..1, without the background.

    >>> import torch
    >>> loss = make_loss(LossSpec(terms={"bce": 1}), activation="sigmoid", class_share=[0.5])
    >>> one = torch.zeros(1, 1, 2, 2)
    >>> round(float(loss(one, one, one == 0)), 4)  # log 2
    0.6931
    """
    if activation == "sigmoid" and "cross_entropy" in spec.chosen:
        raise SettingsError(
            "loss.terms: cross_entropy needs classes that exclude one another; set activation to softmax, or use bce"
        )
    weights = resolve_weights(spec.class_weights, class_share, activation)
    terms = [(weight, _term(name, spec, activation)) for name, weight in spec.chosen.items()]

    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        inputs = LossInput.of(logits, target, valid, activation=activation, weights=weights)
        return torch.stack([weight * term(inputs) for weight, term in terms]).sum()

    return loss


def _term(name: str, spec: LossSpec, activation: Activation) -> Callable[[LossInput], Tensor]:
    entropy = bce if activation == "sigmoid" else cross_entropy
    alpha, beta = spec.tversky_alpha, spec.tversky_beta
    known: dict[str, Callable[[LossInput], Tensor]] = {
        "bce": partial(entropy, smoothing=spec.label_smoothing),
        "cross_entropy": partial(cross_entropy, smoothing=spec.label_smoothing),
        "dice": dice,
        "focal": partial(focal, gamma=spec.focal_gamma, alpha=spec.focal_alpha),
        "tversky": partial(tversky, alpha=alpha, beta=beta),
        "focal_tversky": partial(focal_tversky, alpha=alpha, beta=beta, gamma=spec.focal_tversky_gamma),
        "lovasz": lovasz,
    }
    return known[name]
