"""Scores: known cases, laws, and agreement with brute force."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring import PixelScore, score_pixels, score_polygons
from pipeline.town import build_town

SQUARE = shapely.box(0, 0, 10, 10)

boxes = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9)).map(
        lambda each: shapely.box(each[0], each[1], each[0] + each[2], each[1] + each[3])
    ),
    max_size=8,
)
masks = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("truth", "found", "matched"),
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
def test_pairs_need_more_than_half_in_common(truth: list, found: list, matched: int):
    score = score_polygons(truth, found)
    assert (score.truth, score.found, score.matched) == (len(truth), len(found), matched)


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


@given(truth=boxes, found=boxes)
def test_swapping_truth_and_found_swaps_precision_and_recall(truth: list, found: list):
    forward, backward = score_polygons(truth, found), score_polygons(found, truth)
    assert (forward.precision, forward.recall) == (backward.recall, backward.precision)


@given(truth=boxes, found=boxes)
def test_disjoint_objects_match_as_brute_force_says(truth: list, found: list):
    truth, found = _apart(truth), _apart(found)
    brute = [
        iou
        for one in truth
        for other in found
        if (iou := one.intersection(other).area / one.union(other).area) > 0.5 + 1e-9
    ]
    score = score_polygons(truth, found, least_iou=0.5 + 1e-9)
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
    truth, found, valid = np.array(pixels).T
    parts = [score_pixels(truth[at : at + 7], found[at : at + 7], valid[at : at + 7]) for at in range(0, len(truth), 7)]
    assert sum(parts, start=PixelScore()) == score_pixels(truth, found, valid)


@given(masks)
def test_invalid_pixels_do_not_count(pixels: list):
    truth, found, valid = np.array(pixels).T
    assert score_pixels(truth, found, valid) == score_pixels(truth[valid], found[valid])


@given(masks)
def test_iou_and_f1_are_the_same_ranking(pixels: list):
    truth, found, _ = np.array(pixels).T
    score = score_pixels(truth, found)
    assert score.f1 == pytest.approx(2 * score.iou / (1 + score.iou))
