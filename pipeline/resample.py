"""Change the pixel size of raw pixels while they are read, with validity: arithmetic only.

Each axis is resampled on its own. An output pixel is a weighted mean of the stored pixels it touches,
invalid ones left out; it is valid when at least half of its weight fell on valid pixels:

    shrinking   weight = length of the stored pixel inside the output pixel   (area average)
    enlarging   weight = closeness to the two stored centres around its own   (linear)

Weights follow from the global position of a pixel, so reading by windows equals reading at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Taps:
    """What each output pixel of one axis is made of; at most `taps` stored pixels each."""

    index: NDArray[np.intp]
    """`(outputs, taps)` stored pixel, inside the scene."""
    weight: NDArray[np.float64]
    """`(outputs, taps)` weight of it, 0 or more; the sum of each row is positive."""

    @property
    def span(self) -> tuple[int, int]:
        """First and one-past-last stored pixel touched."""
        return int(self.index.min()), int(self.index.max()) + 1


def plan_taps(stored: int, outputs: int, start: int, stop: int) -> Taps:
    """Taps of output pixels `start:stop` of an axis on which `stored` pixels become `outputs`.

    >>> taps = plan_taps(6, 4, 1, 2)
    >>> taps.index.tolist(), taps.weight.tolist()
    ([[1, 2, 3]], [[0.5, 1.0, 0.0]])
    """
    place = np.arange(start, stop)
    if stored >= outputs:
        low, high = place * stored / outputs, (place + 1) * stored / outputs
        index = low.astype(np.intp)[:, None] + np.arange(-(-stored // outputs) + 1)
        weight = np.clip(np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None]), 0, None)
    else:
        centre = (2 * place + 1) * stored / (2 * outputs) - 0.5
        first = np.floor(centre)
        index = first.astype(np.intp)[:, None] + np.arange(2)
        weight = np.stack([first + 1 - centre, centre - first], axis=1)
    return Taps(index=np.clip(index, 0, stored - 1), weight=weight)


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
    kind = np.dtype(np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64)
    share = _weighted(valid.astype(kind), rows, cols)
    whole = rows.weight.sum(axis=1)[:, None] * cols.weight.sum(axis=1)
    enough = share >= whole * 0.5
    divisor = np.where(enough, share, 1)
    result = np.empty((len(pixels), *enough.shape), pixels.dtype)
    for out, band in zip(result, pixels, strict=True):
        mean = np.where(enough, _weighted(np.where(valid, band, 0).astype(kind), rows, cols) / divisor, 0)
        out[:] = mean if pixels.dtype.kind == "f" else np.rint(mean)
    return result, enough


def _weighted(values: NDArray[np.floating], rows: Taps, cols: Taps) -> NDArray[np.floating]:
    """Sums of weight times value: `(h, w)` -> `(H, W)`."""
    down = np.zeros((len(rows.index), values.shape[1]), values.dtype)
    for index, weight in zip((rows.index - rows.span[0]).T, rows.weight.T.astype(values.dtype), strict=True):
        down += weight[:, None] * values[index]
    across = np.zeros((len(down), len(cols.index)), values.dtype)
    for index, weight in zip((cols.index - cols.span[0]).T, cols.weight.T.astype(values.dtype), strict=True):
        across += weight * down[:, index]
    return across
