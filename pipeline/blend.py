"""Overlapping tile probabilities -> finished strips, as an exact weighted mean.

The contract, for every scene pixel p and the tiles k that cover it, with separable weights
`w_k(p) = u_k(row) * v_k(col) > 0`:

    mosaic[p] = sum_k w_k(p) * probability_k[p] / sum_k w_k(p)

It is computed as a running mean (West 1979, Updating mean and variance estimates, eq. for unequal
weights), first along the tiles of a strip, then down the strips:

    mean_k = mean_{k-1} + (w_k / (w_1 + ... + w_k)) * (probability_k - mean_{k-1})

Where all tiles agree the difference is exactly 0, so a constant stays that constant to the last bit,
and so does a pointwise model for every tiling. No sum of weights is kept, and nothing is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.levels import TOP_LEVEL, LevelType
from pipeline.tiling import Axis

Blend = Literal["hann", "pyramid", "average", "crop", "exact"]
"""`hann`, `pyramid`: smooth crossfades; `average`: plain mean; `crop`, `exact`: each pixel from one tile."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one tile contributes along one axis: scene pixels `start : start + len(factor)`."""

    start: int
    """First scene pixel."""
    skip: int
    """Where that pixel lies in the tile's output."""
    factor: Tensor
    """`w_k / (w_1 + ... + w_k)` per pixel, float32 in (0, 1]; exactly 1 for the first tile of a pixel."""

    @property
    def stop(self) -> int:
        """One past the last scene pixel."""
        return self.start + len(self.factor)


def plan_shares(axis: Axis, blend: Blend) -> tuple[Share, ...]:
    """The running-mean factors of every tile along one axis, in plan order."""
    total = np.zeros(axis.length)
    shares = []
    for index, first in enumerate(axis.starts):
        start, stop = first, min(first + axis.output, axis.length)
        if blend in ("crop", "exact"):
            start, stop = axis.cuts[index : index + 2]
        weight = _profile(axis.output, blend)[start - first : stop - first]
        total[start:stop] += weight
        factor = torch.from_numpy((weight / total[start:stop]).astype(np.float32))
        shares.append(Share(start=start, skip=start - first, factor=factor))
    return tuple(shares)


def covering(shares: Sequence[Share], start: int, stop: int) -> range:
    """Indices of the tiles that contribute to scene pixels `start : stop`."""
    hits = [index for index, share in enumerate(shares) if share.start < stop and share.stop > start]
    return range(hits[0], hits[-1] + 1)


class StripBlender:
    """Blends the tiles of one region, strip by strip; holds two strips at most."""

    def __init__(
        self, rows: Sequence[Share], cols: Sequence[Share], *, span: slice, classes: int, device: torch.device
    ):
        """Prepare buffers for scene columns `span`, `classes` deep, on a device.

        Args:
            rows: shares of the tile rows.
            cols: shares of the tile columns.
            span: scene columns of the region.
            classes: number of output classes.
            device: where blending runs.
        """
        self._rows, self._cols, self._span = rows, cols, span
        self._factors = [share.factor.to(device) for share in cols]
        tallest = max(share.skip + len(share.factor) for share in rows)
        width = span.stop - span.start
        self._strip = torch.zeros((classes, tallest, width), device=device)
        self._mean = torch.zeros((classes, 0, width), device=device)
        self._valid = torch.zeros((0, width), dtype=torch.bool, device=device)
        self._top: int | None = None

    def add(self, col: int, probabilities: Tensor) -> None:
        """Blend one tile's output `(classes, H, W)` into the strip at hand."""
        share, span = self._cols[col], self._span
        start, stop = max(share.start, span.start), min(share.stop, span.stop)
        rows = self._strip.shape[1]
        dst = self._strip[:, :, start - span.start : stop - span.start]
        src = probabilities[:, :rows, share.skip + start - share.start : share.skip + stop - share.start]
        dst.lerp_(src, self._factors[col][start - share.start : stop - share.start])

    def end_strip(self, row: int, valid: Tensor, *, last: bool) -> tuple[int, Tensor, Tensor]:
        """Blend the strip into the rows above it and hand over what is finished.

        Args:
            row: index of the tile row.
            valid: `(share rows, columns)` bool for this strip's share of rows.
            last: True when the region has no further strip.

        Returns:
            `(top, mean, valid)`: scene row of the first finished row, `(classes, rows, columns)`
            probabilities and `(rows, columns)` validity.
        """
        share = self._rows[row]
        top = share.start if self._top is None else self._top
        self._extend(share.stop - top)
        dst = self._mean[:, share.start - top : share.stop - top]
        src = self._strip[:, share.skip : share.skip + len(share.factor)]
        dst.lerp_(src, share.factor.to(dst.device)[:, None])
        self._valid[share.start - top : share.stop - top] = valid
        ready = (share.stop if last else self._rows[row + 1].start) - top
        mean, done = self._mean[:, :ready], self._valid[:ready]
        self._mean, self._valid, self._top = self._mean[:, ready:].clone(), self._valid[ready:].clone(), top + ready
        self._strip.zero_()
        return top, mean, done

    def _extend(self, rows: int) -> None:
        classes, held, width = self._mean.shape
        if rows > held:
            self._mean = torch.cat([self._mean, self._mean.new_zeros((classes, rows - held, width))], dim=1)
            self._valid = torch.cat([self._valid, self._valid.new_zeros((rows - held, width))])


def to_levels(probabilities: Tensor, valid: Tensor, level_type: LevelType) -> NDArray[np.generic]:
    """Quantise probabilities for storage.

    Args:
        probabilities: `(classes, rows, columns)` in 0..1.
        valid: `(rows, columns)` bool, True = real data.
        level_type: the stored type.

    Returns:
        `round(p * top)` with nodata `top + 1` where invalid; float32 keeps `p`, with NaN where invalid.
    """
    if level_type == "float32":
        return probabilities.masked_fill(~valid, torch.nan).cpu().numpy()
    top = TOP_LEVEL[level_type]
    levels = probabilities.clamp(0, 1).mul(top).add_(0.5).floor_().masked_fill_(~valid, top + 1)
    if level_type == "uint8":
        return levels.to(torch.uint8).cpu().numpy()
    return levels.to(torch.int32).cpu().numpy().astype(np.uint16)


def _profile(length: int, blend: Blend) -> NDArray[np.float64]:
    """Weights along a tile's output, strictly positive, highest in the middle."""
    x = np.arange(length)
    if blend == "hann":
        return np.asarray(np.sin(np.pi * (x + 0.5) / length) ** 2)
    if blend == "pyramid":
        return np.minimum(x + 1, length - x).astype(np.float64)
    return np.ones(length)
