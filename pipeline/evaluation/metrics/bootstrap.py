"""Spatial block bootstrap: confidence intervals of scores.

Errors of neighbouring pixels are correlated, so the uncertainty of a score depends on the number of independent
places, not of pixels. Whole blocks are therefore resampled with replacement (Hall 1985, Stochastic Processes and
their Applications 20:231), and the interval is taken from the percentiles of the resampled scores (Efron &
Tibshirani 1993, An Introduction to the Bootstrap, section 13.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.records import BootstrapSpec

MIN_BLOCKS = 30
"""With fewer blocks the intervals are unreliable, commonly too narrow."""
MAX_WEIGHTS = 2_000_000
"""At most this number of weights is held at once; bounds memory for scenes of many blocks."""


def resample_sums(counts: NDArray[np.int64], spec: BootstrapSpec) -> NDArray[np.float64]:
    """Column sums of each resample of the blocks: `(blocks, columns)` -> `(resamples, columns)`, whole numbers.

    A resample draws `blocks` blocks with replacement; the number of draws of each block is multinomial, so
    `sums[r] = weights[r] @ counts` with `weights[r].sum() == blocks`.
    """
    blocks = len(counts)
    if not blocks:
        return np.zeros((spec.resamples, counts.shape[1]))
    rng, table = np.random.default_rng(spec.seed), counts.astype(np.float64)
    step, uniform = max(1, MAX_WEIGHTS // blocks), np.full(blocks, 1 / blocks)
    sums = np.empty((spec.resamples, counts.shape[1]))
    for start in range(0, spec.resamples, step):
        part = sums[start : start + step]
        part[:] = rng.multinomial(blocks, uniform, size=len(part)).astype(np.float64) @ table
    return sums


def percentile_interval(
    scores: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle `confidence` (0..1) of scores `(resamples, ...)`: `(low, high)`, each `scores.shape[1:]`.

    NaN: a score is undefined in a resample, which is then left out; or no resample defines it.
    """
    low, high = np.full(scores.shape[1:], np.nan), np.full(scores.shape[1:], np.nan)
    defined = np.isfinite(scores).any(axis=0) if len(scores) else np.zeros(scores.shape[1:], bool)
    if defined.any():
        tail = (1 - confidence) / 2
        low[defined], high[defined] = np.nanquantile(scores[:, defined], (tail, 1 - tail), axis=0)
    return low, high
