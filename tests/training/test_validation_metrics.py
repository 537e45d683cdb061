"""Pixel metrics: counts first, ratios last."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.training.validation.metrics import Confusion, average_scores, weighted_scores


def test_confusion_counts_add_up_and_give_the_known_ratios() -> None:
    rng = np.random.default_rng(0)
    predicted, labelled, valid = (rng.random((4, 2, 8, 8)) < share for share in (0.4, 0.5, 0.9))
    whole = Confusion.of(predicted, labelled, valid)
    parts = Confusion.of(predicted[:1], labelled[:1], valid[:1]) + Confusion.of(predicted[1:], labelled[1:], valid[1:])
    assert np.array_equal(whole.iou, parts.iou)
    for k in range(2):
        p, t = predicted[:, k][valid[:, k]], labelled[:, k][valid[:, k]]
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


def random_indices(seed: int, classes: int = 4, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, size)
    return np.where(rng.random(size) < 0.6, truth, rng.integers(0, classes, size)), truth


def test_the_matrix_of_exclusive_classes_holds_the_counts_of_each_class() -> None:
    predicted, truth = random_indices(0)
    exclusive = Confusion.of_index(predicted, truth, classes=4)
    planes = [np.stack([index == k for k in range(4)])[None, :, None] for index in (predicted, truth)]
    each = Confusion.of(planes[0], planes[1], np.ones_like(planes[0]))
    for key in ("true_positive", "false_positive", "false_negative", "true_negative"):
        assert getattr(exclusive, key).tolist() == getattr(each, key).tolist()
    assert exclusive.matrix is not None
    for t, p in np.ndindex(4, 4):
        assert exclusive.matrix[t, p] == ((truth == t) & (predicted == p)).sum()
    assert exclusive.overall_accuracy == pytest.approx((predicted == truth).mean())
    assert each.overall_accuracy == pytest.approx((planes[0] == planes[1]).mean())


def test_matrices_add_up_and_do_not_mix_with_independent_classes() -> None:
    predicted, truth = random_indices(1)
    parts = [Confusion.of_index(predicted[at::3], truth[at::3], classes=4, background=True) for at in range(3)]
    total = sum(parts, start=Confusion.zero(4, exclusive=True, background=True))
    whole = Confusion.of_index(predicted, truth, classes=4, background=True)
    assert np.array_equal(total.matrix, whole.matrix)  # type: ignore[arg-type]
    assert total.as_record("abcd") == whole.as_record("abcd")
    with pytest.raises(ValueError, match="do not add up"):
        total + Confusion.zero(4)


def test_the_background_is_excluded_from_means() -> None:
    confusion = Confusion.of_matrix(np.array([[90, 5, 5], [10, 10, 0], [0, 0, 20]]), background=True)
    assert confusion.mean_iou == pytest.approx((10 / 25 + 20 / 25) / 2)
    assert confusion.mean_f1 == pytest.approx((20 / 35 + 40 / 45) / 2)
    assert confusion.overall_accuracy == pytest.approx(120 / 140)
    assert np.isnan(Confusion.zero(2).overall_accuracy)


def test_weighted_scores_equal_a_hand_computation() -> None:
    forest = Confusion(
        true_positive=np.array([40]),
        false_positive=np.array([10]),
        false_negative=np.array([20]),
        true_negative=np.array([30]),
    )
    scores = weighted_scores(forest)  # 60 pixels are forest, 40 are not
    assert scores.accuracy == scores.recall == pytest.approx(0.7)
    assert scores.precision == pytest.approx(0.6 * 40 / 50 + 0.4 * 30 / 50)
    assert scores.f1 == pytest.approx(0.6 * 80 / 110 + 0.4 * 60 / 90)
    assert scores.jaccard == pytest.approx(0.6 * 40 / 70 + 0.4 * 30 / 60)
    matrix = np.array([[30, 10], [20, 40]])
    assert weighted_scores(Confusion.of_matrix(matrix, background=True)) == scores
    with pytest.raises(ValueError, match="2 independent classes have no common confusion matrix"):
        weighted_scores(Confusion.zero(2))


def test_a_class_that_is_never_predicted_scores_zero_and_an_absent_one_nothing() -> None:
    never = weighted_scores(Confusion.of_matrix(np.array([[6, 0, 0], [2, 0, 0], [0, 0, 0]])))
    assert never.precision == pytest.approx(0.75 * 6 / 8)
    assert never.jaccard == pytest.approx(0.75 * 6 / 8)


def test_several_images_get_their_f1_from_the_mean_precision_and_recall() -> None:
    images = [weighted_scores(Confusion.of_matrix(np.array(each))) for each in ([[9, 1], [0, 10]], [[5, 0], [10, 5]])]
    precision, recall = (np.mean([getattr(image, name) for image in images]) for name in ("precision", "recall"))
    whole = average_scores(images)
    assert whole.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert whole.jaccard == pytest.approx(np.mean([image.jaccard for image in images]))
    assert whole.f1 != pytest.approx(np.mean([image.f1 for image in images]), abs=1e-3)
