"""Calibration of a mosaic's probabilities: reliability bins, summed block by block.

Independent classes: of the pixels with probability p of a class, a share p should be of that class. Exclusive
classes: of the pixels whose likeliest class has probability p, a share p should be of that class (Guo et al.
2017, On Calibration of Modern Neural Networks, eq. 1 to 3).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.records import CalibrationBins
from pipeline.training.validation import BINS, Reliability, bin_of, divide_or_nan


class CalibrationSums:
    """Sums per bin of probability."""

    def __init__(self) -> None:
        self.count = np.zeros(BINS, np.int64)
        self.probability = np.zeros(BINS)
        self.true = np.zeros(BINS, np.int64)

    def add(
        self,
        probability: NDArray[np.float32],
        labelled: NDArray[np.bool_],
        counted: NDArray[np.bool_],
        *,
        exclusive: bool,
    ) -> None:
        """Add a window, all `(planes, height, width)`; `exclusive` = only the likeliest class of each pixel."""
        if exclusive:
            best = probability.argmax(axis=0)[None]
            probability = np.take_along_axis(probability, best, axis=0)
            labelled, counted = (np.take_along_axis(each, best, axis=0) for each in (labelled, counted))
        chosen = probability[counted].astype(np.float64)
        index = bin_of(chosen)
        self.count += np.bincount(index, minlength=BINS)
        self.probability += np.bincount(index, chosen, minlength=BINS)
        self.true += np.bincount(index[labelled[counted]], minlength=BINS)

    def finish(self) -> CalibrationBins | None:
        """The bins; None when no pixel was added."""
        return _bins(self.count, self.probability, self.true)


def join_bins(parts: Iterable[CalibrationBins]) -> CalibrationBins | None:
    """The bins of several scenes together; None when there are none."""
    count, probability, true = np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS)
    for part in parts:
        pixels = np.array(part.count)
        count += pixels
        # Mean times count gives the sum back; the mean of an empty bin is None.
        probability += pixels * np.array([value or 0.0 for value in part.confidence])
        true += pixels * np.array([value or 0.0 for value in part.accuracy])
    return _bins(count, probability, true)


def _bins(
    count: NDArray[np.int64], probability: NDArray[np.float64], true: NDArray[np.generic]
) -> CalibrationBins | None:
    total = int(count.sum())
    if not total:
        return None
    confidence, accuracy = (divide_or_nan(sums.astype(np.float64), count) for sums in (probability, true))
    bins = Reliability(confidence=confidence, accuracy=accuracy, count=count)
    return CalibrationBins(
        count=tuple(count.tolist()),
        confidence=_nan_to_none(confidence),
        accuracy=_nan_to_none(accuracy),
        ece=round(bins.ece, 6),
    )


def _nan_to_none(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
