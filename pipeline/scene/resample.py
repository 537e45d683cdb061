"""Resampling of raw pixels and their validity while they are read: arithmetic only.

Each axis is resampled separately. An output pixel is a weighted mean of the valid stored pixels it touches;
it is valid when at least half of its weight falls on valid pixels:

    by area     weight = length of the stored pixel inside the output pixel   (pixels outside the file have weight too)
    linear      weight = closeness to the two stored centres around its own   (enlarging a scene of one grid)

Weights follow from the global position of a pixel, so reading by windows equals reading at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class AxisMapping:
    """Mapping of one axis of a scene to stored pixels: the scene's pixels go in equal steps from `first` to `last`."""

    stored: int
    """Pixels of the file."""
    outputs: int
    """Pixels of the scene."""
    first: Fraction
    """Stored pixels between the file's edge and the scene's first edge; below 0 where the scene begins earlier."""
    last: Fraction
    """The same of the scene's last edge; over `stored` where the scene ends later."""
    linear: bool = False
    """Interpolate between stored centres; needs `first` and `last` to be the file's own edges."""

    @classmethod
    def over(cls, stored: int, outputs: int) -> AxisMapping:
        """The whole file onto the whole scene."""
        return cls(stored=stored, outputs=outputs, first=Fraction(0), last=Fraction(stored), linear=stored < outputs)

    @property
    def step(self) -> Fraction:
        """Stored pixels to one output pixel."""
        return (self.last - self.first) / self.outputs

    @property
    def is_identity(self) -> bool:
        """Each output pixel is the stored pixel of the same index."""
        return self.first == 0 and self.last == self.stored == self.outputs

    @property
    def is_nested(self) -> bool:
        """Each output pixel lies in a single stored pixel."""
        return not self.linear and (1 / self.step).denominator == 1 and (self.first / self.step).denominator == 1

    def edges(self, start: int, stop: int) -> tuple[NDArray[np.int64], int]:
        """Left edges of outputs `start : stop` in stored pixels, as numerators and their common denominator."""
        common = math.lcm(self.first.denominator, self.last.denominator)
        first, last = int(self.first * common), int(self.last * common)
        return np.arange(start, stop) * (last - first) + first * self.outputs, common * self.outputs


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Filter taps of one axis: the stored pixels, at most `taps`, that each output pixel is a mean of."""

    index: NDArray[np.intp]
    """`(outputs, taps)` stored pixel, inside the file."""
    weight: NDArray[np.float64]
    """`(outputs, taps)` weight of it, 0 or more."""
    whole: NDArray[np.float64]
    """`(outputs,)` positive weight of the output pixel, over the sum of its taps where it reaches past the file."""
    inside: NDArray[np.bool_]
    """`(outputs,)` True where any of it lies on the file."""

    @property
    def span(self) -> tuple[int, int]:
        """First and one-past-last stored pixel touched; equal when there is none."""
        if not self.inside.any():
            return 0, 0
        index = self.index[self.inside]
        return int(index.min()), int(index.max()) + 1


def plan_taps(mapping: AxisMapping, start: int, stop: int) -> Taps:
    """Taps of output pixels `start : stop` of an axis.

    >>> taps = plan_taps(AxisMapping.over(6, 4), 1, 2)
    >>> taps.index.tolist(), taps.weight.tolist()
    ([[1, 2, 3]], [[0.5, 1.0, 0.0]])
    """
    stored, outputs = mapping.stored, mapping.outputs
    if mapping.linear:
        # Bilinear: centres of output pixels in stored pixels, 0 = centre of the first.
        centre = (2 * np.arange(start, stop) + 1) * stored / (2 * outputs) - 0.5
        first = np.floor(centre)
        index = first.astype(np.intp)[:, None] + np.arange(2)
        weight = np.stack([first + 1 - centre, centre - first], axis=1)
        inside = np.ones(len(index), bool)
    else:
        # Area: the weight of a stored pixel is the length of its overlap with the output pixel.
        numerators, denominator = mapping.edges(start, stop + 1)
        low, high = numerators[:-1] / denominator, numerators[1:] / denominator
        index = np.floor(low).astype(np.intp)[:, None] + np.arange(math.ceil(mapping.step) + 1)
        weight = np.clip(np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None]), 0, None)
        inside = (high > 0) & (low < stored)

    # Before taps past the file get weight 0: `whole` counts them too.
    whole = weight.sum(axis=1)
    if not mapping.linear:
        weight = np.where((index >= 0) & (index < stored), weight, 0)
    return Taps(index=np.clip(index, 0, stored - 1), weight=weight, whole=whole, inside=inside)


def plan_nested(mapping: AxisMapping, start: int, stop: int) -> Taps:
    """The one stored pixel in which each output pixel of a nested axis lies, as taps of weight 1.

    >>> half = AxisMapping(stored=3, outputs=4, first=Fraction(1, 2), last=Fraction(5, 2))
    >>> plan_nested(half, 0, 4).index.ravel().tolist()
    [0, 1, 1, 2]
    """
    numerators, denominator = mapping.edges(start, stop)
    place = numerators // denominator
    inside = (place >= 0) & (place < mapping.stored)
    index = np.clip(place, 0, mapping.stored - 1).astype(np.intp)[:, None]
    return Taps(index=index, weight=inside[:, None].astype(float), whole=np.ones(len(index)), inside=inside)


def resample(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_], rows: Taps, cols: Taps
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Resample a window of stored pixels.

    Args:
        pixels: `(bands, h, w)` stored pixels `rows.span` x `cols.span`.
        valid: `(h, w)`, True = real data.
        rows: taps of the output rows.
        cols: taps of the output columns.

    Returns:
        `(bands, H, W)` in the same dtype (whole numbers rounded), and `(H, W)` bool. Invalid pixels are 0.
    """
    # float32 holds integers of 16 bits exactly.
    kind = np.dtype(np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64)
    # Mean of the valid pixels; an output pixel is valid where they have at least half of its weight.
    share = _weighted(valid.astype(kind), rows, cols)
    enough = share >= _half(rows, cols)
    divisor = np.where(enough, share, 1)
    result = np.empty((len(pixels), *enough.shape), pixels.dtype)
    for out, band in zip(result, pixels, strict=True):
        mean = np.where(enough, _weighted(np.where(valid, band, 0).astype(kind), rows, cols) / divisor, 0)
        out[:] = mean if pixels.dtype.kind == "f" else np.rint(mean)
    return result, enough


def resample_plane(plane: NDArray[np.bool_], rows: Taps, cols: Taps) -> NDArray[np.bool_]:
    """Where at least half of an output pixel's weight fell on True: `(h, w)` -> `(H, W)`."""
    return np.asarray(_weighted(plane.astype(np.float32), rows, cols) >= _half(rows, cols))


def _half(rows: Taps, cols: Taps) -> NDArray[np.float64]:
    return rows.whole[:, None] * cols.whole * 0.5


def _weighted(values: NDArray[np.floating], rows: Taps, cols: Taps) -> NDArray[np.floating]:
    """Sums of weight times value: `(h, w)` -> `(H, W)`."""
    down = np.zeros((len(rows.index), values.shape[1]), values.dtype)
    for index, weight in zip(_local(rows), rows.weight.T.astype(values.dtype), strict=True):
        down += weight[:, None] * values[index]
    across = np.zeros((len(down), len(cols.index)), values.dtype)
    for index, weight in zip(_local(cols), cols.weight.T.astype(values.dtype), strict=True):
        across += weight * down[:, index]
    return across


def _local(taps: Taps) -> NDArray[np.intp]:
    """`(taps, outputs)` indices within the span; where an output lies past the file, any index, of weight 0."""
    first, last = taps.span
    return np.clip(taps.index - first, 0, last - first - 1).T
