"""Pixel metrics (IoU, precision, recall, F1, accuracy) from confusion counts.

Independent classes are counted one by one; of exclusive ones the whole confusion matrix is kept, from which the same
counts follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.training.validation.ratios import confusion_ratio

RATIOS = ("iou", "precision", "recall", "f1", "accuracy")
"""Metrics per class, in the order of records and tables."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of pixels per class; adding two gives the counts of both areas together.

    Ratios per class are NaN where undefined. Means are over the classes that occur, without the background.
    """

    true_positive: NDArray[np.int64]
    """`(classes,)`, like the other counts."""
    false_positive: NDArray[np.int64]
    false_negative: NDArray[np.int64]
    true_negative: NDArray[np.int64]
    matrix: NDArray[np.int64] | None = None
    """`(classes, classes)` of exclusive classes: pixels of row's class taken for column's; None if independent."""
    background: bool = False
    """True: the first class is the absence of all others and is excluded from means."""

    @classmethod
    def zero(cls, classes: int, *, exclusive: bool = False, background: bool = False) -> Confusion:
        """The confusion of no pixels."""
        if exclusive:
            return cls.of_matrix(np.zeros((classes, classes), np.int64), background=background)
        nothing = np.zeros(classes, np.int64)
        return cls(true_positive=nothing, false_positive=nothing, false_negative=nothing, true_negative=nothing)

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], labelled: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Confusion:
        """Count pixels of independent classes, all `(N, classes, H, W)` bool; those not `valid` are left out."""
        axes = (0, 2, 3)
        labelled, predicted = labelled & valid, predicted & valid
        both = (predicted & labelled).sum(axes)
        found, true = predicted.sum(axes), labelled.sum(axes)
        return cls(
            true_positive=both,
            false_positive=found - both,
            false_negative=true - both,
            true_negative=valid.sum(axes) - found - true + both,
        )

    @classmethod
    def of_matrix(cls, matrix: NDArray[np.int64], *, background: bool = False) -> Confusion:
        """From a matrix of exclusive classes: `matrix[t, p]` pixels are of class t and were taken for class p."""
        right, true, found = np.diagonal(matrix).copy(), matrix.sum(1), matrix.sum(0)
        return cls(
            true_positive=right,
            false_positive=found - right,
            false_negative=true - right,
            true_negative=matrix.sum() - true - found + right,
            matrix=matrix,
            background=background,
        )

    @classmethod
    def of_index(
        cls, predicted: NDArray[np.integer], labelled: NDArray[np.integer], *, classes: int, background: bool = False
    ) -> Confusion:
        """Count pixels of exclusive classes from two index arrays of one shape; leave out what does not count before.

        >>> Confusion.of_index(np.array([0, 1, 1]), np.array([0, 1, 0]), classes=2).matrix.tolist()
        [[1, 1], [0, 1]]
        """
        pairs = labelled.astype(np.int64).ravel() * classes + predicted.ravel()
        matrix = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
        return cls.of_matrix(matrix, background=background)

    def __add__(self, other: Confusion) -> Confusion:
        if (self.matrix is None) != (other.matrix is None) or self.background != other.background:
            raise ValueError("counts of independent and of exclusive classes do not add up")
        counts = ("true_positive", "false_positive", "false_negative", "true_negative")
        total = replace(self, **{key: getattr(self, key) + getattr(other, key) for key in counts})
        if self.matrix is None or other.matrix is None:
            return total
        return replace(total, matrix=self.matrix + other.matrix)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class, `tp / (tp + fp + fn)`; NaN where neither predicted nor labelled."""
        return self._ratio("iou")

    @property
    def precision(self) -> NDArray[np.float64]:
        """`tp / (tp + fp)` per class; NaN where nothing was predicted."""
        return self._ratio("precision")

    @property
    def recall(self) -> NDArray[np.float64]:
        """`tp / (tp + fn)` per class; NaN where nothing is labelled."""
        return self._ratio("recall")

    @property
    def f1(self) -> NDArray[np.float64]:
        """`2 tp / (2 tp + fp + fn)` per class, which is also the Dice coefficient."""
        return self._ratio("f1")

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of counted pixels that are right, per class."""
        return self._ratio("accuracy")

    @property
    def overall_accuracy(self) -> float:
        """Share of decisions that are right: of exclusive classes one a pixel, else one a pixel and class; or NaN."""
        right, valid = self.true_positive, self.true_positive + self.false_negative
        if self.matrix is None:
            right, valid = right + self.true_negative, valid + self.false_positive + self.true_negative
        return float(right.sum() / valid.sum()) if valid.any() else math.nan

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over classes that occur; 0 when none does."""
        return self._mean(self.iou)

    @property
    def mean_f1(self) -> float:
        """Mean of `f1` (Dice) over classes that occur; 0 when none does."""
        return self._mean(self.f1)

    def as_record(self, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Per class name its IoU, precision, recall, F1 and accuracy, rounded, None where undefined."""
        values = {name: getattr(self, name) for name in RATIOS}
        return {label: {name: _rounded(values[name][k]) for name in RATIOS} for k, label in enumerate(classes)}

    def _ratio(self, name: str) -> NDArray[np.float64]:
        counts = (self.true_positive, self.false_positive, self.false_negative, self.true_negative)
        return confusion_ratio(name, counts)

    def _mean(self, values: NDArray[np.float64]) -> float:
        classes = values[int(self.background) :]
        return float(np.nanmean(classes)) if np.isfinite(classes).any() else 0.0


@dataclass(frozen=True, kw_only=True)
class WeightedScores:
    """Means over all classes, background included, weighted by how many pixels truly are of each; all 0..1."""

    accuracy: float
    """Share of pixels that are right; equals the recall."""
    precision: float
    """A class that is never predicted has 0."""
    recall: float
    """As scikit-learn's `average="weighted"`, like the others."""
    f1: float
    """Of one image: the weighted mean of each class's F1; of several: from their mean precision and recall."""
    jaccard: float
    """Intersection over union."""


def weighted_scores(confusion: Confusion) -> WeightedScores:
    """What scikit-learn calls weighted averages, of exclusive classes or of one class and its absence.

    `sum over classes of true pixels * ratio / all pixels`, NaN when nothing was counted.
    """
    whole = Confusion.of_matrix(_full_matrix(confusion))
    support = whole.true_positive + whole.false_negative

    def weighted(ratio: NDArray[np.float64]) -> float:
        return float((np.nan_to_num(ratio) * support).sum() / support.sum()) if support.any() else math.nan

    return WeightedScores(
        accuracy=whole.overall_accuracy,
        precision=weighted(whole.precision),
        recall=weighted(whole.recall),
        f1=weighted(whole.f1),
        jaccard=weighted(whole.iou),
    )


def average_scores(images: Sequence[WeightedScores]) -> WeightedScores:
    """Plain mean over images; F1 from the mean precision and recall, as in John & Zhang (2022)."""
    names = ("accuracy", "precision", "recall", "jaccard")
    means = {name: float(np.mean([getattr(image, name) for image in images])) for name in names}
    both = means["precision"] + means["recall"]
    return WeightedScores(**means, f1=2 * means["precision"] * means["recall"] / both if both else 0.0)


def _full_matrix(confusion: Confusion) -> NDArray[np.int64]:
    if confusion.matrix is not None:
        return confusion.matrix
    if len(confusion.true_positive) != 1:
        raise ValueError(f"{len(confusion.true_positive)} independent classes have no common confusion matrix")
    rows = (confusion.true_negative, confusion.false_positive), (confusion.false_negative, confusion.true_positive)
    return np.array(rows, np.int64).reshape(2, 2)


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
