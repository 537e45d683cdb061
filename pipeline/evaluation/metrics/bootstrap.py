"""How sure is a score: intervals from resampling blocks of the ground.

Neighbouring pixels are right or wrong together, so a score's uncertainty follows the number of independent
places, not of pixels. Whole blocks are therefore resampled with replacement (the spatial block bootstrap:
Hall 1985, Stochastic Processes and their Applications 20:231), and the interval is cut from the resampled
scores by percentiles (Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.records import BootstrapSpec

FEW_BLOCKS = 30
"""With fewer blocks the intervals are themselves a guess, commonly too narrow."""
HELD_WEIGHTS = 2_000_000
"""Most weights held at once; bounds memory for scenes of many blocks."""


def resample_sums(counts: NDArray[np.int64], spec: BootstrapSpec) -> NDArray[np.float64]:
    """Column sums of each resample of the blocks.

    A resample draws as many blocks as there are, with replacement; how often each is drawn is multinomial, so
    `sums[r] = weights[r] @ counts` with `weights[r].sum() == blocks`.

    Args:
        counts: `(blocks, columns)`, what was counted in each block.
        spec: resamples and seed.

    Returns:
        `(resamples, columns)`, whole numbers.
    """
    blocks = len(counts)
    if not blocks:
        return np.zeros((spec.resamples, counts.shape[1]))
    rng, table = np.random.default_rng(spec.seed), counts.astype(np.float64)
    step, even = max(1, HELD_WEIGHTS // blocks), np.full(blocks, 1 / blocks)
    sums = np.empty((spec.resamples, counts.shape[1]))
    for start in range(0, spec.resamples, step):
        part = sums[start : start + step]
        part[:] = rng.multinomial(blocks, even, size=len(part)).astype(np.float64) @ table
    return sums


def percentile_interval(
    scores: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle `confidence` of resampled scores.

    Args:
        scores: `(resamples, ...)`; NaN where a score is undefined in a resample, which is then left out.
        confidence: 0..1.

    Returns:
        `(low, high)`, each `scores.shape[1:]`; NaN where no resample defines the score.
    """
    low, high = np.full(scores.shape[1:], np.nan), np.full(scores.shape[1:], np.nan)
    defined = np.isfinite(scores).any(axis=0) if len(scores) else np.zeros(scores.shape[1:], bool)
    if defined.any():
        tail = (1 - confidence) / 2
        low[defined], high[defined] = np.nanquantile(scores[:, defined], (tail, 1 - tail), axis=0)
    return low, high
