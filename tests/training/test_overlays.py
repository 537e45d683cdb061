"""Overlay pictures: every colour means what the legend says, and the chosen windows are the informative ones."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.model.card import ModelCard
from pipeline.training.artifacts.overlay_panels import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GAP,
    WRONG_CLASS,
    OverlayArrays,
    edge,
    paint_errors,
    paint_probability,
    paint_truth,
    ramp_colours,
    stretch,
)
from pipeline.training.artifacts.overlay_sheet import CAPTION, EDGE, TITLE
from pipeline.training.artifacts.overlays import (
    PredictedWindow,
    WindowScore,
    choose_windows,
    classify,
    overlay_png,
    paint_panels,
)

ROOF = ModelCard(bands=("red", "green", "blue"), classes=("roof",), threshold=0.4)
LAND = ModelCard(
    bands=("red", "green", "blue"),
    classes=("background", "water", "field"),
    activation="softmax",
    background="background",
)


def window_of(seed: int, card: ModelCard = ROOF, *, side: int = 16, weight_mask: float = 0.8) -> PredictedWindow:
    """Random pixels, labels and probabilities; exclusive ones when the card's are."""
    rng = np.random.default_rng(seed)
    classes = len(card.classes)
    probability = rng.random((classes, side, side), np.float32)
    truth = rng.random((classes, side, side)) < 0.4
    if card.activation == "softmax":
        truth = rng.integers(0, classes, (side, side)) == np.arange(classes)[:, None, None]
        probability /= probability.sum(axis=0)
    counts = np.repeat(rng.random((1, side, side)) < weight_mask, classes, axis=0)
    return PredictedWindow(
        scene=f"scene {seed}",
        row=8 * seed,
        col=3,
        pixels=rng.integers(0, 4000, (3, side, side)).astype(np.uint16),
        valid=counts[0] | (rng.random((side, side)) < 0.5),
        truth=truth,
        weight_mask=counts,
        probability=probability,
    )


def planes_of(window: PredictedWindow, card: ModelCard) -> OverlayArrays:
    foreground = [index for index, _, _ in card.foreground]
    return OverlayArrays(
        picture=stretch(window.pixels, window.valid),
        valid=window.valid,
        truth=window.truth[foreground],
        probability=window.probability[foreground],
        decided=classify(window.probability, card)[foreground],
        weight_mask=window.weight_mask[foreground],
    )


def verdict(truth: NDArray[np.bool_], decided: NDArray[np.bool_], weight_mask: NDArray[np.bool_]) -> str:
    """The slow reference: what became of one pixel, from its value in each class."""
    if not weight_mask.any():
        return "gap"
    rows = [(bool(t), bool(d)) for t, d, c in zip(truth, decided, weight_mask, strict=True) if c]
    alarm, miss = (False, True) in rows, (True, False) in rows
    if alarm and miss:
        return "confused"
    return "alarm" if alarm else "miss" if miss else "right"


@pytest.mark.parametrize("card", [ROOF, LAND], ids=["independent", "exclusive"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_every_pixel_of_the_error_panel_has_the_colour_of_its_verdict(card: ModelCard, seed: int):
    planes = planes_of(window_of(seed, card, side=6), card)
    painted = paint_errors(planes).colours
    colours = {"alarm": [FALSE_POSITIVE], "miss": [FALSE_NEGATIVE], "confused": [WRONG_CLASS], "gap": list(GAP)}
    for row, col in np.ndindex(6, 6):
        here = verdict(planes.truth[:, row, col], planes.decided[:, row, col], planes.weight_mask[:, row, col])
        colour = tuple(int(value) for value in painted[row, col])
        if here in colours:
            assert colour in colours[here]
        else:  # the picture in greys
            assert len(set(colour)) == 1


@pytest.mark.parametrize("card", [ROOF, LAND], ids=["independent", "exclusive"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_hits_misses_and_false_alarms_add_up_to_what_is_labelled_and_predicted(card: ModelCard, seed: int):
    window = window_of(seed, card)
    planes, score = planes_of(window, card), WindowScore.of(window, card)
    assert score.true_positives + score.false_negatives == (planes.truth & planes.weight_mask).sum()
    assert score.true_positives + score.false_positives == (planes.decided & planes.weight_mask).sum()
    assert score.scored_pixels == planes.weight_mask.sum()
    assert score.iou == score.true_positives / (score.true_positives + score.wrong)


def test_a_window_without_any_object_has_no_iou():
    window = window_of(0)
    nothing = replace(window, truth=np.zeros_like(window.truth), probability=np.zeros_like(window.probability))
    assert WindowScore.of(nothing, ROOF).iou is None
    assert WindowScore.of(nothing, ROOF).ranking_score == -1


def test_decisions_are_the_cards_own():
    probability = np.array([[[0.39, 0.4, 0.9]]], np.float32)
    assert classify(probability, replace(ROOF, threshold=0.4 - 1e-6)).tolist() == [[[False, True, True]]]
    assert classify(probability, replace(ROOF, threshold=0.95)).sum() == 0
    exclusive = np.array([[[0.4, 0.3]], [[0.35, 0.3]], [[0.25, 0.4]]], np.float32)
    assert classify(exclusive, LAND).tolist() == [[[True, False]], [[False, False]], [[False, True]]]


@given(seed=st.integers(0, 10_000), factor=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_magnifying_makes_a_square_of_every_pixel_and_nothing_else(seed: int, factor: int):
    planes = planes_of(window_of(seed, LAND, side=5), LAND)
    large = planes.magnified(factor)
    for i, j in np.ndindex(factor, factor):
        assert np.array_equal(large.picture[i::factor, j::factor], planes.picture)
        assert np.array_equal(large.probability[:, i::factor, j::factor], planes.probability)
        assert np.array_equal(large.weight_mask[:, i::factor, j::factor], planes.weight_mask)


@given(seed=st.integers(0, 10_000), gain=st.floats(0.01, 100), bias=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_the_stretch_does_not_depend_on_the_unit_of_the_pixels(seed: int, gain: float, bias: float):
    rng = np.random.default_rng(seed)
    pixels, valid = rng.random((3, 9, 9)), rng.random((9, 9)) < 0.7
    valid[0, :2] = True
    plain, other = stretch(pixels, valid).astype(int), stretch(pixels * gain + bias, valid).astype(int)
    assert np.abs(plain - other).max() <= 1
    assert plain[valid].max() == 255
    assert plain[valid].min() == 0


def test_nodata_does_not_decide_the_stretch_and_comes_out_black():
    pixels, valid = np.full((3, 8, 8), 100, np.float32), np.ones((8, 8), bool)
    pixels[:, :, 4:] = 200
    pixels[:, 0, 0], valid[0, 0] = 1e9, False
    pixels[0, 1, 1] = np.nan  # a valid pixel that cannot be shown
    picture = stretch(pixels, valid)
    assert picture[0, 0].max() == picture[1, 1].max() == 0
    assert (picture[2:, 4:] == 255).all()
    assert not stretch(pixels, np.zeros_like(valid)).any()


def test_edges_lie_inside_and_a_picture_that_is_all_object_has_none():
    inside = np.zeros((12, 12), bool)
    inside[2:9, 3:11] = True
    assert not (edge(inside) & ~inside).any()
    assert not edge(inside)[4:7, 5:9].any()
    assert edge(inside)[2:4, 3:11].all()
    assert not edge(np.ones((12, 12), bool)).any()


def test_one_class_is_shown_on_the_ramp_with_its_threshold_marked():
    planes = planes_of(window_of(3, weight_mask=1.0), ROOF)
    panel = paint_probability(replace(planes, valid=np.ones_like(planes.valid)), ["roof"], 0.4)
    levels = np.rint(planes.probability[0] * 255).astype(int)
    assert np.array_equal(panel.colours, ramp_colours()[levels])
    assert panel.mark == 0.4


def test_the_ramp_grows_lighter_from_0_to_1():
    light = ramp_colours().astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > -1).all()
    assert light[-1] - light[0] > 150


def test_legends_name_the_classes_that_are_there_and_no_others():
    window = window_of(1, LAND, weight_mask=1.0)
    truth = window.truth.copy()
    truth[0], truth[2] = truth[0] | truth[2], False
    panel = paint_truth(planes_of(replace(window, truth=truth), LAND), ["water", "field"])
    assert [key.name for key in panel.keys] == ["water"]


def test_the_sheet_shows_the_panels_pixel_by_pixel():
    window = window_of(5, side=64)
    sheet = np.asarray(Image.open(io.BytesIO(overlay_png(window, ROOF, title="worst"))))
    for index, panel in enumerate(paint_panels(window, ROOF)):
        height, width = panel.colours.shape[:2]
        left, top = EDGE + index * (width + 12), CAPTION + TITLE
        assert np.array_equal(sheet[top : top + height, left : left + width], panel.colours)
    assert height == 512


@pytest.mark.parametrize(
    ("bands", "height", "width"),
    [
        (1, 40, 40),  # grey
        (2, 24, 200),  # radar, wide
        (7, 200, 9),  # many bands, narrower than its legend
        (3, 1, 1),
    ],
)
def test_any_window_has_a_picture(bands: int, height: int, width: int):
    card = ModelCard(bands=tuple(f"b{k}" for k in range(bands)), classes=(("a very long name of a class " * 4)[:100],))
    plane = np.ones((1, height, width), bool)
    window = PredictedWindow(
        scene="s" * 300,
        row=0,
        col=0,
        pixels=np.zeros((bands, height, width), np.int16),
        valid=plane[0],
        truth=plane,
        weight_mask=plane,
        probability=plane.astype(np.float32),
    )
    assert Image.open(io.BytesIO(overlay_png(window, card))).width >= 4 * 260


def test_many_classes_have_a_legend_that_ends():
    names = tuple(f"class number {k}" for k in range(40))
    card = ModelCard(bands=("red", "green", "blue"), classes=names)
    shape = Image.open(io.BytesIO(overlay_png(window_of(2, card), card))).size
    assert shape[1] < 900


def test_the_windows_shown_are_the_worst_the_best_and_some_others():
    windows = [window_of(seed) for seed in range(30)]
    scores = [WindowScore.of(window, ROOF) for window in windows]
    chosen = choose_windows(iter(windows), ROOF, count=7, seed=1)
    assert [kind for kind, _ in chosen] == ["worst"] * 3 + ["best"] * 3 + ["any"]
    assert len({window.scene for _, window in chosen}) == 7
    worst = sorted((score.wrong for score in scores), reverse=True)[:3]
    assert [WindowScore.of(window, ROOF).wrong for _, window in chosen[:3]] == worst
    best = max(scores, key=lambda score: score.iou or 0)
    assert WindowScore.of(chosen[3][1], ROOF).iou == best.iou


def test_the_draw_depends_on_the_seed_alone():
    windows = [window_of(seed) for seed in range(40)]
    first, again, other = (
        [window.scene for _, window in choose_windows(windows, ROOF, count=9, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[:6] == other[:6]


def test_windows_where_nothing_counts_are_not_shown_and_few_windows_are_shown_once():
    blank = window_of(0, weight_mask=0.0)
    assert choose_windows([blank, blank], ROOF, count=4, seed=0) == []
    assert len(choose_windows([blank, window_of(1)], ROOF, count=4, seed=0)) == 1


def test_chosen_windows_do_not_hold_on_to_the_batch_they_were_cut_from():
    window = window_of(1)
    ((_, chosen),) = choose_windows([window], ROOF, count=1, seed=0)
    assert not np.shares_memory(chosen.pixels, window.pixels)
    assert not np.shares_memory(chosen.probability, window.probability)
