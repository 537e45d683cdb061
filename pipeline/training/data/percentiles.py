"""Streaming percentiles of pixel values: exact for integers of at most 16 bits, from a uniform sample for others."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 2**18
"""Pixels sampled where values are not counted; the error of a percentile p is then about `sqrt(p (100 - p)) / 512`
percent points (one standard deviation), 0.03 at the 2nd."""


class Percentiles(Protocol):
    """Accumulates pixels and returns percentiles per band, by the inverse of the distribution function.

    The percentile p is the smallest value at or below which at least p percent of the pixels lie (Hyndman & Fan
    1996, American Statistician 50:361, definition 1).
    """

    def add(self, values: NDArray[np.generic]) -> None:
        """Add `(bands, n)` values."""

    def at(self, percent: float) -> NDArray[np.float64]:
        """The percentile of each band, `(bands,)`, for `percent` from 0 to 100."""


class CountedPercentiles:
    """Exact percentiles of an integer type of at most 16 bits, from a histogram of all its values."""

    def __init__(self, bands: int, dtype: np.dtype[np.generic]) -> None:
        info = np.iinfo(dtype)  # type: ignore[type-var]
        self._lowest = int(info.min)
        self._counts = np.zeros((bands, int(info.max) - self._lowest + 1), np.int64)

    def add(self, values: NDArray[np.generic]) -> None:
        """Add `(bands, n)` values of the type."""
        for counts, band in zip(self._counts, values.astype(np.int64) - self._lowest, strict=True):
            counts += np.bincount(band, minlength=len(counts))

    def at(self, percent: float) -> NDArray[np.float64]:
        """The exact percentile of each band."""
        cumulative = self._counts.cumsum(axis=1)
        rank = max(1, math.ceil(percent / 100 * cumulative[0, -1] - 1e-9))
        return np.array([np.searchsorted(each, rank) + self._lowest for each in cumulative], float)


class SampledPercentiles:
    """Percentiles of a uniform sample without replacement: the pixels with the smallest of seeded random keys."""

    def __init__(self, bands: int, *, seed: int, max_values: int = MAX_VALUES) -> None:
        self._rng = np.random.default_rng([seed, 3])
        self._max_values = max_values
        self._keys = np.zeros(0)
        self._values = np.zeros((bands, 0))

    def add(self, values: NDArray[np.generic]) -> None:
        """Add `(bands, n)` values."""
        keys, limit = np.concatenate([self._keys, self._rng.random(values.shape[1])]), self._max_values
        kept = np.argpartition(keys, limit)[:limit] if len(keys) > limit else np.arange(len(keys))
        old, new = kept[kept < len(self._keys)], kept[kept >= len(self._keys)] - len(self._keys)
        self._values = np.concatenate([self._values[:, old], values[:, new].astype(np.float64)], axis=1)
        self._keys = np.concatenate([keys[old], keys[new + len(self._keys)]])

    def at(self, percent: float) -> NDArray[np.float64]:
        """The percentile of the sample, per band."""
        return np.asarray(np.quantile(self._values, percent / 100, axis=1, method="inverted_cdf"), float)


def make_percentiles(bands: int, dtype: str, *, seed: int) -> Percentiles:
    """Exact percentiles for integers of at most 16 bits, otherwise sampled ones."""
    kind = np.dtype(dtype)
    if kind.kind in "iu" and kind.itemsize <= 2:
        return CountedPercentiles(bands, kind)
    return SampledPercentiles(bands, seed=seed)
