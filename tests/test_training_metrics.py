"""Pixel metrics: counts first, ratios last."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.training.metrics import Confusion


def test_confusion_counts_add_up_and_give_the_known_ratios() -> None:
    rng = np.random.default_rng(0)
    predicted, labelled, counted = (rng.random((4, 2, 8, 8)) < share for share in (0.4, 0.5, 0.9))
    whole = Confusion.of(predicted, labelled, counted)
    parts = Confusion.of(predicted[:1], labelled[:1], counted[:1]) + Confusion.of(
        predicted[1:], labelled[1:], counted[1:]
    )
    assert np.array_equal(whole.iou, parts.iou)
    for k in range(2):
        p, t = predicted[:, k][counted[:, k]], labelled[:, k][counted[:, k]]
        assert whole.iou[k] == pytest.approx((p & t).sum() / (p | t).sum())
        assert whole.precision[k] == pytest.approx(t[p].mean())
        assert whole.recall[k] == pytest.approx(p[t].mean())
        assert whole.f1[k] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert whole.accuracy[k] == pytest.approx((p == t).mean())


def test_metrics_of_nothing_are_undefined_not_zero() -> None:
    nothing = Confusion.of(*(np.zeros((1, 1, 2, 2), bool),) * 2, np.ones((1, 1, 2, 2), bool))
    assert np.isnan(nothing.iou).all()
    assert nothing.mean_iou == 0
    assert json.dumps(nothing.as_record(("roof",)), allow_nan=False)
    assert nothing.as_record(("roof",))["roof"] == {
        "iou": None, "precision": None, "recall": None, "f1": None, "accuracy": 1.0,
    }  # fmt: skip
