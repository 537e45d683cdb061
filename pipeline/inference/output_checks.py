"""Checks of network outputs: their shape, and values within 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.model import ModelCard

ROUNDING = 1e-4
"""Tolerance of the range 0..1."""


def check_shape(probabilities: Tensor, tiles: Tensor, card: ModelCard) -> None:
    """Refuse outputs that are not `(N, classes, H - 2 margin, W - 2 margin)`."""
    n, _, height, width = tiles.shape
    expected = (n, len(card.classes), height - 2 * card.margin, width - 2 * card.margin)
    if tuple(probabilities.shape) != expected:
        raise ModelError(
            f"the predictor turned {tuple(tiles.shape)} into {tuple(probabilities.shape)}, but its card "
            f"({len(card.classes)} classes, margin {card.margin}) promises {expected}"
        )


class RangeCheck:
    """Checks that probabilities lie in 0..1, without synchronizing with a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Probabilities are on `device`."""
        self._at_once = device.type == "cpu"
        self._extremes: list[Tensor] = []

    def add(self, probabilities: Tensor) -> None:
        """Check a batch: at once on a CPU; on other devices its extremes are kept until `take`."""
        extremes = torch.stack(torch.aminmax(probabilities))
        if self._at_once:
            check_range(*extremes.tolist())
        else:
            self._extremes.append(extremes)

    @torch.inference_mode()
    def take(self) -> Tensor:
        """`(2,)` on the device: smallest and largest probability since the last call; 0 and 1 if there was none."""
        extremes, self._extremes = self._extremes, []
        if not extremes:
            return torch.tensor([0.0, 1.0])
        together = torch.stack(extremes)
        return torch.stack([together[:, 0].amin(), together[:, 1].amax()])


def check_range(low: float, high: float) -> None:
    """Refuse probabilities whose extremes are NaN or outside 0..1."""
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    what = "NaN" if low != low or high != high else f"values from {low:.4g} to {high:.4g}"
    raise ModelError(
        f"the predictor returned {what} where probabilities in 0..1 are due; "
        "if it returns logits, say so in its card: outputs='logits'"
    )
