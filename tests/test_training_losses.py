"""Every loss equals a slow reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pipeline.training.losses import LossSpec, bce_loss, dice_loss, segmentation_loss


def random_case(seed: int, share: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4, 5)
    logits = torch.randn(shape, generator=generator) * 3
    target = (torch.rand(shape, generator=generator) < share).float()
    return logits, target, torch.rand(shape, generator=generator) < 0.7


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_equal_a_slow_reference(share: float) -> None:
    for seed in range(5):
        logits, target, counted = random_case(seed, share)
        crossed, ratios = [], []
        for k in range(3):
            both = total = 0.0
            for n, i, j in itertools.product(range(2), range(4), range(5)):
                if not counted[n, k, i, j]:
                    continue
                p, t = 1 / (1 + math.exp(-float(logits[n, k, i, j]))), float(target[n, k, i, j])
                crossed.append(-math.log(p if t else 1 - p))
                both, total = both + p * t, total + p + t
            ratios.append(1 - (2 * both + 1) / (total + 1))
        assert float(bce_loss(logits, target, counted)) == pytest.approx(np.mean(crossed), rel=1e-5)
        assert float(dice_loss(logits, target, counted)) == pytest.approx(np.mean(ratios), rel=1e-5)
        both_losses = segmentation_loss(logits, target, counted, spec=LossSpec(bce_weight=2, dice_weight=0.5))
        assert float(both_losses) == pytest.approx(2 * np.mean(crossed) + 0.5 * np.mean(ratios), rel=1e-5)


def test_pixels_that_do_not_count_have_no_influence() -> None:
    logits, target, counted = random_case(0)
    logits.requires_grad_()
    target[~counted] = 255
    loss = segmentation_loss(logits, target, counted, spec=LossSpec())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[~counted] == 0).all()
    assert (logits.grad[counted] != 0).all()
    nothing = segmentation_loss(logits, target, torch.zeros_like(counted), spec=LossSpec())
    assert float(nothing.detach()) == 0
