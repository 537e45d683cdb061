"""Augmentation parameters of one window, and the stack of windows that they are applied to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AugmentParams:
    """All augmentation parameters of one window; the defaults leave it unchanged."""

    mirrored: bool = False
    """True = flipped left-right, after the quarter turns."""
    quarter_turns: int = 0
    """Counter-clockwise, 0 to 3."""
    degrees: float = 0.0
    """Rotation, counter-clockwise."""
    scale: float = 1.0
    """Factor of apparent size, above 0; 2 shows half the land at twice the size."""
    elastic: tuple[float, ...] = ()
    """Displacement in pixels of `nodes * nodes` grid nodes along rows, then along columns; empty = none."""
    factor: tuple[float, ...] = ()
    """Factor of each band of the model input; empty = 1."""
    shift: tuple[float, ...] = ()
    """Added to each band after the factor, in standard deviations; empty = 0."""
    gamma: float = 1.0
    """Exponent of the middle tones."""
    blur_px: float = 0.0
    """Deviation of the Gaussian blur in pixels."""
    noise: float = 0.0
    """Deviation of the noise."""
    noise_seed: int = 0
    """Of the noise, 0 to 2**63 - 1."""
    cutouts: tuple[tuple[float, float], ...] = ()
    """Centres `(row, col)` of the squares set to 0, as shares of the window's side, 0 to 1."""
    cutout_side: float = 0.0
    """Side of those squares as a share of the window's side."""

    @property
    def warps(self) -> bool:
        """Whether the window must be resampled."""
        return self.degrees != 0 or self.scale != 1 or any(self.elastic)


@dataclass(frozen=True, kw_only=True)
class WindowStack:
    """Square windows of equal size, on one device."""

    pixels: Tensor
    """`(N, bands, H, W)` float32 model input, 0 where invalid."""
    target: Tensor
    """`(N, classes, H, W)` uint8: 1 object, 0 none, 255 unlabelled."""
    valid: Tensor
    """`(N, H, W)` bool, True = real data."""

    def crop(self, size: int) -> WindowStack:
        """The middle `size` x `size` pixels; views, not copies."""
        start = (self.valid.shape[-1] - size) // 2
        inner = (..., slice(start, start + size), slice(start, start + size))
        return self._each(lambda tensor: tensor[inner])

    def to(self, device: torch.device) -> WindowStack:
        """The same on a device; the copy of pinned windows is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> WindowStack:
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def select(self, rows: Sequence[int]) -> WindowStack:
        """Some of the windows, in this order."""
        if list(rows) == list(range(len(self.valid))):
            return self
        index = torch.tensor(rows, device=self.valid.device)
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> WindowStack:
        return WindowStack(pixels=change(self.pixels), target=change(self.target), valid=change(self.valid))


def masked_rows(params: Sequence[AugmentParams], condition: Callable[[AugmentParams], object]) -> list[int]:
    """Indices of the windows whose parameters satisfy a condition."""
    return [row for row, each in enumerate(params) if condition(each)]


def where(whole: Tensor, rows: Sequence[int], parts: Tensor) -> Tensor:
    """A copy of `whole` with `parts` in the given rows."""
    if len(rows) == len(whole):
        return parts
    return whole.index_copy(0, torch.tensor(rows, device=whole.device), parts)
