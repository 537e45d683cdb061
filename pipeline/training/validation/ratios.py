"""IoU, F1, precision, recall and accuracy as ratios of confusion counts: the formulas of training and evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = tuple[int, int, int, int]
FORMULAS: dict[str, tuple[Weights, Weights]] = {
    "iou": ((1, 0, 0, 0), (1, 1, 1, 0)),
    "f1": ((2, 0, 0, 0), (2, 1, 1, 0)),
    "precision": ((1, 0, 0, 0), (1, 1, 0, 0)),
    "recall": ((1, 0, 0, 0), (1, 0, 1, 0)),
    "accuracy": ((1, 0, 0, 1), (1, 1, 1, 1)),
}
"""Weights of (TP, FP, FN, TN) in numerator and denominator; F1 is also the Dice coefficient."""


def confusion_ratio(name: str, counts: ArrayLike) -> NDArray[np.float64]:
    """`FORMULAS[name]` of counts `(4, ...)`, TP, FP, FN and TN; shape `(...)`, NaN where the denominator is 0.

    >>> float(confusion_ratio("f1", (3, 1, 1, 0)))
    0.75
    """
    part, whole = (np.tensordot(weights, np.asarray(counts), 1) for weights in FORMULAS[name])
    return divide_or_nan(part, whole)


def divide_or_nan(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """`part / whole` as float64, NaN where `whole` is not above 0."""
    ratio = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=ratio, where=np.greater(whole, 0))
    return ratio
