"""Ratios of confusion counts: the textbook formulas, one by one, and NaN where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.validation.ratios import FORMULAS, confusion_ratio, divide_or_nan

TP, FP, FN, TN = 30, 6, 4, 60
EXPECTED = {
    "iou": TP / (TP + FP + FN),
    "f1": 2 * TP / (2 * TP + FP + FN),
    "precision": TP / (TP + FP),
    "recall": TP / (TP + FN),
    "accuracy": (TP + TN) / (TP + FP + FN + TN),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_formula_is_the_textbook_one_for_numbers_and_arrays(name: str) -> None:
    counts = np.array([TP, FP, FN, TN])
    assert float(confusion_ratio(name, counts)) == EXPECTED[name]
    several = confusion_ratio(name, np.stack([counts, 2 * counts, 0 * counts], axis=1))
    np.testing.assert_array_equal(several, [EXPECTED[name], EXPECTED[name], np.nan])


def test_a_division_by_zero_is_nan_and_warns_of_nothing() -> None:
    np.testing.assert_array_equal(divide_or_nan(np.array([0, 1, 3]), np.array([0, 2, 0])), [np.nan, 0.5, np.nan])
