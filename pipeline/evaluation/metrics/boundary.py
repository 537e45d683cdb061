"""Boundary IoU (Cheng et al. 2021): agreement of outlines, independent of the size of the objects.

Plain IoU hardly changes with a ragged outline of a large object. Boundary IoU compares only the pixels of a mask near
its own outline, so that large and small objects have the same weight.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics.matching import PixelScore, score_pixels

SHARE_OF_DIAGONAL = 0.02
"""Width of the bands as a share of the image diagonal, the paper's choice."""


def boundary_width_px(height: int, width: int, share: float = SHARE_OF_DIAGONAL) -> int:
    """Width of the bands for an image of a size, in whole pixels, at least 1.

    >>> boundary_width_px(1200, 1600)
    40
    """
    return max(1, round(share * math.hypot(height, width)))


def score_boundary(
    reference: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None = None,
    *,
    width_px: int,
    core: tuple[slice, slice] | None = None,
) -> PixelScore:
    """Count the band pixels of two masks `(height, width)` of one class; the score's `iou` is the boundary IoU.

    `|band(reference) & band(predicted)| / |band(reference) | band(predicted)|`. A band reaches `width_px` (at least 1,
    Chebyshev distance) from an outline. `valid`: True = the pixel counts; `core`: rows and columns to count; all by
    default. Counts of blocks add up to those of the whole scene when the cores partition it and each block reaches
    `width_px` beyond its core, or to the scene's edge.

    >>> square = np.zeros((9, 9), bool)
    >>> square[1:8, 1:8] = True
    >>> score_boundary(square, square, width_px=1).true_positives
    24
    """
    valid = np.ones(reference.shape, bool) if valid is None else valid
    rows, cols = core or (slice(None), slice(None))
    bands = (boundary_band(mask, valid, width_px)[rows, cols] for mask in (reference, predicted))
    return score_pixels(*bands)


def boundary_band(mask: NDArray[np.bool_], valid: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """Valid pixels of a mask that have a valid pixel outside the mask within `width_px`.

    Nodata and the edge of the array are not outlines. (The paper's own code treats the edge of the image as an
    outline, which every pair of masks then has in common.)
    """
    outside = valid & ~mask
    return mask & valid & _is_near(_is_near(outside, width_px, axis=0), width_px, axis=1)


def _is_near(mask: NDArray[np.bool_], reach: int, *, axis: int) -> NDArray[np.bool_]:
    """Whether a pixel within `reach` along an axis is True; from running counts, so every reach costs the same."""
    counts = np.insert(np.cumsum(mask, axis=axis, dtype=np.int32), 0, 0, axis=axis)
    at, length = np.arange(mask.shape[axis]), mask.shape[axis]
    before = counts.take(np.maximum(at - reach, 0), axis=axis)
    upto: NDArray[np.bool_] = counts.take(np.minimum(at + reach + 1, length), axis=axis) > before
    return upto
