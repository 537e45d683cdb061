"""Scores: known cases, laws, and agreement with brute force."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pipeline.evaluation.metrics.boundary import boundary_band, boundary_width_px, score_boundary
from pipeline.evaluation.metrics.matching import (
    THRESHOLDS,
    ObjectCurve,
    PixelScore,
    clip_to_area,
    match_polygons,
    score_object_curve,
    score_pixels,
    score_polygons,
)
from pipeline.training.synthetic import build_town

SQUARE = shapely.box(0, 0, 10, 10)

boxes = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9)).map(
        lambda each: shapely.box(each[0], each[1], each[0] + each[2], each[1] + each[3])
    ),
    max_size=8,
)
masks = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("reference", "predicted", "matched"),
    [
        ([SQUARE], [SQUARE], 1),
        ([SQUARE], [shapely.box(0, 0, 10, 5)], 0),  # IoU is exactly one half: not more
        ([SQUARE], [shapely.box(0, 0, 10, 5.1)], 1),
        ([SQUARE], [shapely.box(0, 0, 5, 10), shapely.box(5, 0, 10, 10)], 0),  # cut in two at a seam
        ([SQUARE, shapely.box(11, 0, 21, 10)], [shapely.box(0, 0, 21, 10)], 0),  # two grown together
        ([SQUARE], [SQUARE, SQUARE], 1),  # a duplicate is a false alarm
        ([SQUARE], [shapely.box(10, 0, 20, 10)], 0),  # touching is not overlapping
        ([SQUARE], [], 0),
        ([], [SQUARE], 0),
    ],
)
def test_pairs_need_more_than_half_in_common(reference: list, predicted: list, matched: int):
    score = score_polygons(reference, predicted)
    assert (score.reference, score.predicted, score.matched) == (len(reference), len(predicted), matched)


def test_nothing_to_find_and_nothing_found_is_perfect():
    assert score_polygons([], []).f1 == 1.0
    assert PixelScore().iou == 1.0


def test_a_broken_label_is_repaired():
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert score_polygons([bow_tie], [shapely.make_valid(bow_tie)]).matched == 1


def test_a_town_against_itself_is_perfect():
    buildings = build_town(0, 256, 256).buildings
    score = score_polygons(buildings, buildings)
    assert (score.f1, score.mean_iou) == (1.0, pytest.approx(1.0))


@given(reference=boxes, predicted=boxes)
def test_swapping_reference_and_prediction_swaps_precision_and_recall(reference: list, predicted: list):
    forward, backward = score_polygons(reference, predicted), score_polygons(predicted, reference)
    assert (forward.precision, forward.recall) == (backward.recall, backward.precision)


@given(reference=boxes, predicted=boxes, min_iou=st.sampled_from([0.0, 0.2, 0.5]))
def test_a_pair_is_dropped_only_when_a_better_one_has_its_object(reference: list, predicted: list, min_iou: float):
    pairs = match_polygons(reference, predicted, min_iou=min_iou)
    chosen = list(zip(pairs.reference_index.tolist(), pairs.predicted_index.tolist(), pairs.iou.tolist(), strict=True))
    assert len(set(pairs.reference_index.tolist())) == len(set(pairs.predicted_index.tolist())) == len(chosen)
    assert (np.diff(pairs.iou) <= 0).all()
    for i, true in enumerate(reference):
        for j, seen in enumerate(predicted):
            iou = true.intersection(seen).area / true.union(seen).area
            near = [taken for k, m, taken in chosen if k == i or m == j]
            assert max(near, default=min_iou) >= iou - 1e-12
    assert all(reference[i].intersection(predicted[j]).area > 0 and iou > min_iou for i, j, iou in chosen)


@given(reference=boxes, predicted=boxes)
def test_disjoint_objects_match_like_brute_force(reference: list, predicted: list):
    reference, predicted = _apart(reference), _apart(predicted)
    brute = [
        iou
        for one in reference
        for other in predicted
        if (iou := one.intersection(other).area / one.union(other).area) > 0.5 + 1e-9
    ]
    score = score_polygons(reference, predicted, min_iou=0.5 + 1e-9)
    assert score.matched == len(brute)
    assert score.mean_iou == pytest.approx(np.mean(brute) if brute else 0.0)


def _apart(polygons: list) -> list:
    kept: list = []
    for polygon in polygons:
        if not any(polygon.intersects(other) for other in kept):
            kept.append(polygon)
    return kept


@given(masks)
def test_blocks_add_up_to_the_whole(pixels: list):
    reference, predicted, valid = np.array(pixels).T
    parts = [
        score_pixels(reference[at : at + 7], predicted[at : at + 7], valid[at : at + 7])
        for at in range(0, len(reference), 7)
    ]
    assert sum(parts, start=PixelScore()) == score_pixels(reference, predicted, valid)


@given(masks)
def test_invalid_pixels_do_not_count(pixels: list):
    reference, predicted, valid = np.array(pixels).T
    assert score_pixels(reference, predicted, valid) == score_pixels(reference[valid], predicted[valid])


@given(masks)
def test_iou_and_f1_are_the_same_ranking(pixels: list):
    reference, predicted, _ = np.array(pixels).T
    score = score_pixels(reference, predicted)
    assert score.f1 == pytest.approx(2 * score.iou / (1 + score.iou))


@given(reference=boxes, predicted=boxes)
def test_a_curve_equals_the_scores_at_each_bound(reference: list, predicted: list):
    curve = score_object_curve(reference, predicted)
    each = [score_polygons(reference, predicted, min_iou=bound) for bound in THRESHOLDS]
    assert curve.matched == tuple(score.matched for score in each)
    assert curve.f1 == tuple(score.f1 for score in each)
    assert curve.mean_precision == pytest.approx(np.mean([score.precision for score in each]))
    assert curve.mean_recall == pytest.approx(np.mean([score.recall for score in each]))
    assert curve.mean_f1 == pytest.approx(np.mean([score.f1 for score in each]))


def test_the_bounds_are_ten_from_half_to_nearly_all():
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert score_object_curve([SQUARE], [shapely.box(0, 0, 10, 8.2)]).matched == (1, 1, 1, 1, 1, 1, 1, 0, 0, 0)


def test_curves_of_far_scenes_add_up_to_that_of_both():
    far = [shapely.affinity.translate(SQUARE, 100)]
    predicted = [shapely.box(0, 0, 10, 7), shapely.box(100, 0, 110, 9.6)]
    parts = score_object_curve([SQUARE], predicted[:1]) + score_object_curve(far, predicted[1:])
    assert sum([parts], start=ObjectCurve()) == score_object_curve([SQUARE, *far], predicted)
    with pytest.raises(ValueError, match="do not add up"):
        parts + score_object_curve([], [], thresholds=(0.5,))


def test_objects_mostly_outside_an_area_are_dropped_and_the_others_clipped():
    area = shapely.box(0, 0, 10, 10)
    inside, half_out, sliver = shapely.box(1, 1, 2, 2), shapely.box(8, 0, 12, 4), shapely.box(9, 5, 19, 9)
    kept = clip_to_area([inside, half_out, sliver], area)
    assert [each.bounds for each in kept] == [(1, 1, 2, 2), (8, 0, 10, 4)]
    assert len(clip_to_area([], area)) == 0


masks_2d = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(mask=masks_2d, reach=st.integers(1, 4), data=st.data())
def test_a_band_is_what_erosion_takes_away(mask: np.ndarray, reach: int, data: st.DataObject):
    valid = data.draw(arrays(bool, mask.shape, elements=st.booleans()))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), bool)
    eroded = ndimage.binary_erosion(mask | ~valid, kernel, border_value=1)  # neither edge nor nodata is an outline
    assert np.array_equal(boundary_band(mask, valid, reach), mask & valid & ~eroded)


@given(pixels=arrays(bool, (3, 13, 11)), row=st.integers(1, 12), col=st.integers(1, 10), reach=st.integers(1, 3))
def test_boundary_counts_of_blocks_add_up(pixels: np.ndarray, row: int, col: int, reach: int):
    reference, predicted, valid = pixels
    total = PixelScore()
    for rows in (range(row), range(row, 13)):
        for cols in (range(col), range(col, 11)):
            top, left = max(rows.start - reach, 0), max(cols.start - reach, 0)
            block = (slice(top, rows.stop + reach), slice(left, cols.stop + reach))
            core = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
            total += score_boundary(reference[block], predicted[block], valid[block], width_px=reach, core=core)
    assert total == score_boundary(reference, predicted, valid, width_px=reach)


def test_a_wide_band_is_the_whole_mask_and_a_narrow_one_sees_ragged_outlines():
    reference = np.zeros((200, 200), bool)
    reference[20:180, 20:180] = True
    predicted = reference.copy()
    predicted[20:180:2, 20] = predicted[20, 20:180:2] = predicted[179, 20:180:2] = predicted[20:180:2, 179] = False
    assert score_boundary(reference, predicted, width_px=200) == score_pixels(reference, predicted)
    plain, near = score_pixels(reference, predicted).iou, score_boundary(reference, predicted, width_px=2).iou
    assert plain > 0.98
    assert near < 0.75
    assert score_boundary(reference, reference, width_px=2).iou == 1.0


def test_two_squares_shifted_by_a_pixel_have_the_boundary_iou_of_the_paper():
    reference, predicted = np.zeros((2, 30, 30), bool)
    reference[5:15, 5:15] = True
    predicted[5:15, 6:16] = True
    # rings of 36 pixels; they share 9 pixels above and 9 below
    score = score_boundary(reference, predicted, width_px=1)
    assert (score.true_positives, score.false_positives, score.false_negatives) == (18, 18, 18)


def test_the_band_is_two_percent_of_the_diagonal_and_at_least_a_pixel():
    assert boundary_width_px(512, 512) == round(0.02 * 512 * 2**0.5) == 14
    assert boundary_width_px(8, 8) == 1
    assert boundary_width_px(300, 400, share=0.01) == 5
