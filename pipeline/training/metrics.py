"""Pixel metrics from one pass over predictions and targets: counts first, ratios last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of pixels per class; adding two gives the counts of both areas together."""

    true_positive: NDArray[np.int64]
    """`(classes,)`: predicted and labelled."""
    false_positive: NDArray[np.int64]
    """`(classes,)`: predicted, not labelled."""
    false_negative: NDArray[np.int64]
    """`(classes,)`: labelled, not predicted."""
    true_negative: NDArray[np.int64]
    """`(classes,)`: neither."""

    @classmethod
    def zero(cls, classes: int) -> Confusion:
        """Nothing counted yet."""
        return cls(**{key: np.zeros(classes, np.int64) for key in cls.__dataclass_fields__})

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], labelled: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Confusion:
        """Count pixels, all `(N, classes, H, W)` bool; those not `counted` are left out."""
        axes = (0, 2, 3)
        return cls(
            true_positive=(predicted & labelled & counted).sum(axes),
            false_positive=(predicted & ~labelled & counted).sum(axes),
            false_negative=(~predicted & labelled & counted).sum(axes),
            true_negative=(~predicted & ~labelled & counted).sum(axes),
        )

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(**{key: getattr(self, key) + getattr(other, key) for key in self.__dataclass_fields__})

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class, `tp / (tp + fp + fn)`; NaN where neither predicted nor labelled."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> NDArray[np.float64]:
        """`tp / (tp + fp)` per class; NaN where nothing was predicted."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> NDArray[np.float64]:
        """`tp / (tp + fn)` per class; NaN where nothing is labelled."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> NDArray[np.float64]:
        """`2 tp / (2 tp + fp + fn)` per class, which is also the Dice coefficient."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of counted pixels that are right, per class."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over classes that occur; 0 when none does."""
        return float(np.nanmean(self.iou)) if np.isfinite(self.iou).any() else 0.0

    def as_record(self, classes: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
        """Per class name its IoU, precision, recall, F1 and accuracy, rounded, None where undefined."""
        names = ("iou", "precision", "recall", "f1", "accuracy")
        values = {name: getattr(self, name) for name in names}
        return {
            label: {n: round(float(values[n][k]), 4) if np.isfinite(values[n][k]) else None for n in names}
            for k, label in enumerate(classes)
        }


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
