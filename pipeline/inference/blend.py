"""Blending of overlapping tile probabilities into strips, as an exact weighted mean.

The contract, for every scene pixel p and the tiles k that cover it, with separable weights
`w_k(p) = u_k(row) * v_k(col) > 0`:

    mosaic[p] = sum_k w_k(p) * probability_k[p] / sum_k w_k(p)

It is computed as a running mean (West 1979, Updating mean and variance estimates, eq. for unequal
weights), first along the tiles of a strip, then down the strips:

    mean_k = mean_{k-1} + (w_k / (w_1 + ... + w_k)) * (probability_k - mean_{k-1})

Where all tiles agree the difference is exactly 0, so a constant stays that constant to the last bit,
and so does a pointwise model for every tiling. No sum of weights is kept, and nothing is divided. Pixels that no
earlier tile has met are copied: their factor is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.tiling.tiles import Axis
from pipeline.mosaic import TOP_LEVEL, LevelType

Blend = Literal["hann", "pyramid", "average", "crop", "exact"]
"""`hann`, `pyramid`: smooth crossfades; `average`: plain mean; `crop`, `exact`: each pixel from one tile."""
CROP = frozenset[Blend]({"crop", "exact"})
"""Blends in which each pixel comes from one tile, whose core it lies in."""


@dataclass(frozen=True, kw_only=True)
class BlendWeights:
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


def plan_blend_weights(axis: Axis, blend: Blend) -> tuple[BlendWeights, ...]:
    """The running-mean factors of every tile along one axis, in plan order."""
    total = np.zeros(axis.length)
    shares = []
    for first, (start, stop) in zip(axis.starts, axis.reach(core_only=blend in CROP), strict=True):
        # `total` is w_1 + ... + w_k after tile k, at each pixel.
        weight = _profile(axis.output, blend)[start - first : stop - first]
        total[start:stop] += weight
        factor = torch.from_numpy((weight / total[start:stop]).astype(np.float32))
        shares.append(BlendWeights(start=start, skip=start - first, factor=factor))
    return tuple(shares)


def tiles_covering(shares: Sequence[BlendWeights], start: int, stop: int) -> range:
    """Indices of the tiles that contribute to scene pixels `start : stop`."""
    hits = [index for index, share in enumerate(shares) if share.start < stop and share.stop > start]
    return range(hits[0], hits[-1] + 1)


class StripBlender:
    """Blends the tiles of one region, strip by strip, in two buffers that are allocated once.

    The strip buffer takes the tiles of the current strip. Its first rows are then blended with the unfinished rows of
    the strip above; the rows that the next strip adds to are held, and the rows between are finished:

        strip buffer   |<- held from above ->|<------ met first ------>|
        afterwards     |<------------- finished ------------>|<- held ->|
    """

    @torch.inference_mode()
    def __init__(
        self,
        rows: Sequence[BlendWeights],
        cols: Sequence[BlendWeights],
        *,
        span: slice,
        classes: int,
        device: torch.device,
    ):
        """Prepare buffers for scene columns `span`, `classes` deep, on a device.

        Args:
            rows: weights of the tile rows.
            cols: weights of the tile columns.
            span: scene columns of the region.
            classes: number of output classes.
            device: where blending runs.
        """
        self._rows, self._cols, self._span = rows, cols, span
        self._down = [share.factor.to(device)[:, None] for share in rows]
        self._across = [share.factor.to(device) for share in cols]
        tallest = max(share.skip + len(share.factor) for share in rows)
        most_held = max([above.stop - below.start for above, below in pairwise(rows)], default=0)
        width = span.stop - span.start
        self._strip = torch.zeros((classes, tallest, width), device=device)
        self._held = torch.zeros((classes, most_held, width), device=device)
        self._rows_held = 0

    @torch.inference_mode()
    def add(self, col: int, probabilities: Tensor) -> None:
        """Blend one tile's output `(classes, H, W)` into the current strip; tiles come from left to right."""
        share, span = self._cols[col], self._span
        start, stop = max(share.start, span.start), min(share.stop, span.stop)
        # Columns `start:met` hold earlier tiles and are blended; `met:stop` are copied.
        met = min(max(start, self._cols[col - 1].stop if col else start), stop)
        for first, last in ((start, met), (met, stop)):
            dst = self._strip[:, :, first - span.start : last - span.start]
            offset = first - share.start
            width = last - first
            src = probabilities[:, : dst.shape[1], share.skip + offset : share.skip + offset + width]
            if first < met:
                dst.lerp_(src, self._across[col][offset : offset + width])
            else:
                dst.copy_(src)

    @torch.inference_mode()
    def end_strip(self, row: int, *, last: bool) -> Tensor:
        """Blend the strip with the rows held from above it and return the finished rows.

        Args:
            row: index of the tile row.
            last: True when the region has no further strip.

        Returns:
            `(classes, rows, columns)` probabilities of the rows from the first row of this strip on; a view of
            the strip buffer, good until the next tile is added.
        """
        share, overlap = self._rows[row], self._rows_held
        strip = self._strip[:, share.skip : share.skip + len(share.factor)]
        if overlap:
            above, new = self._held[:, :overlap], strip[:, :overlap]
            torch.lerp(above, new, self._down[row][:overlap], out=new)

        # This also sets the number of rows to hold for the strip below.
        finished = self.skip_strip(row, last=last)
        self._held[:, : self._rows_held].copy_(strip[:, finished:])
        return strip[:, :finished]

    def skip_strip(self, row: int, *, last: bool) -> int:
        """End a strip without wanted pixels, without blending it; see `end_strip`.

        Returns:
            The number of rows that are finished.
        """
        share = self._rows[row]
        finished = len(share.factor) if last else self._rows[row + 1].start - share.start
        self._rows_held = len(share.factor) - finished
        return finished


@torch.inference_mode()
def to_levels(probabilities: Tensor, valid: Tensor | None, level_type: LevelType) -> Tensor:
    """Quantise probabilities for storage.

    Args:
        probabilities: `(classes, rows, columns)` in 0..1.
        valid: `(rows, columns)` bool, True = real data; None where every pixel is.
        level_type: the stored type.

    Returns:
        A new tensor of that type: `round(p * top)` with nodata `top + 1` where invalid; float32 keeps `p`, with NaN
        where invalid.
    """
    top = TOP_LEVEL[level_type]
    if level_type == "float32":
        levels, nodata = probabilities.clone(), torch.nan
    else:
        # The conversion below truncates, so 0.5 is added to round; the upper bound keeps `top` from becoming nodata.
        levels, nodata = probabilities.mul(top).add_(0.5).clamp_(0, top + 0.5), top + 1
    if valid is not None:
        levels.masked_fill_(~valid, nodata)
    # torch converts by way of int32 several times faster than directly.
    return levels if level_type == "float32" else levels.to(torch.int32).to(getattr(torch, level_type))


def _profile(length: int, blend: Blend) -> NDArray[np.float64]:
    """Weights along a tile's output, strictly positive, highest in the middle."""
    x = np.arange(length)
    if blend == "hann":
        return np.asarray(np.sin(np.pi * (x + 0.5) / length) ** 2)
    if blend == "pyramid":
        return np.minimum(x + 1, length - x).astype(np.float64)
    return np.ones(length)
