from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.model.card import ModelCard
from pipeline.mosaic.classify import classify, classify_multilabel, resolve_threshold
from pipeline.mosaic.levels import INVALID, TOP_LEVEL, LevelType, as_integers, as_levels, stored_nodata

INDEPENDENT = ModelCard(bands=("red",), classes=("roof", "road"))
EXCLUSIVE = ModelCard(bands=("red",), classes=("none", "roof", "road"), activation="softmax", background="none")


def pixels(*levels: tuple[int, ...]) -> np.ndarray:
    """One row of pixels, each given by the levels of its classes."""
    return np.array(levels, np.uint16).T[:, None, :]


@pytest.mark.parametrize("top", [254, 65534])
def test_a_threshold_at_a_level_includes_that_level(top: int):
    for level in range(1, 255):
        assert resolve_threshold(INDEPENDENT, level / top, top) == level


@pytest.mark.parametrize("top", [254, 65534])
def test_no_threshold_is_so_low_that_level_0_is_of_the_class(top: int):
    assert resolve_threshold(INDEPENDENT, 1e-9, top) == 1


def test_the_most_probable_class_above_the_threshold_wins():
    levels = pixels((200, 100), (100, 200), (200, 200), (126, 126), (127, 0), (INVALID, INVALID))
    assert classify(levels, INDEPENDENT, top=254).tolist() == [[1, 2, 1, 0, 1, 255]]
    assert classify(levels, INDEPENDENT, 0.4, top=254).tolist() == [[1, 2, 1, 1, 1, 255]]


def test_exclusive_classes_are_decided_by_the_greatest_the_first_among_equals():
    levels = pixels((9, 1, 2), (1, 9, 2), (1, 2, 9), (0, 0, 0), (5, 5, 5), (1, 5, 5), (INVALID,) * 3)
    assert classify(levels, EXCLUSIVE, top=254).tolist() == [[0, 1, 2, 0, 0, 1, 255]]


def test_independent_classes_are_decided_apart():
    levels = pixels((200, 100), (100, 200), (200, 200), (INVALID, INVALID))
    first, second = classify_multilabel(levels, INDEPENDENT, top=254)
    assert first.mask.tolist() == [[1, 0, 1, 255]]
    assert second.mask.tolist() == [[0, 2, 2, 255]]
    assert second.level[0, :3].tolist() == [100, 200, 200]


def test_exclusive_classes_are_decided_together():
    (only,) = classify_multilabel(pixels((9, 1, 2), (1, 2, 9)), EXCLUSIVE, top=254)
    assert only.mask.tolist() == [[0, 2]]
    assert only.level.tolist() == [[9, 9]]


def test_a_threshold_for_exclusive_classes_is_refused():
    with pytest.raises(SettingsError, match="no meaning"):
        classify(pixels((1, 2, 3)), EXCLUSIVE, 0.5, top=254)
    with pytest.raises(SettingsError, match=r"at most 1, not 1\.5"):
        classify(pixels((1, 2)), INDEPENDENT, 1.5, top=254)


@pytest.mark.parametrize("card", [INDEPENDENT, EXCLUSIVE, ModelCard(bands=("red",), classes=("roof",))])
@pytest.mark.parametrize("threshold", [None, 0.004, 0.5, 1.0])
def test_bytes_are_decided_like_the_levels_they_mean(card: ModelCard, threshold: float | None):
    threshold = None if card.activation == "softmax" else threshold
    stored = np.random.default_rng(0).integers(0, 256, (len(card.classes), 64, 64), np.uint8)
    stored[0, :2] = np.arange(128).reshape(2, 64) * 2
    assert as_integers(stored).dtype == np.uint8
    expected = classify(as_levels(stored), card, threshold, top=254)
    assert (classify(as_integers(stored), card, threshold, top=254) == expected).all()


@pytest.mark.parametrize("level", [1, 64, 127, 254])
def test_each_independent_class_is_decided_as_if_it_were_the_only_one(level: int):
    levels = np.array([np.arange(255), np.arange(255)[::-1]], np.uint16)[:, None]
    alone = ModelCard(bands=("red",), classes=("roof",))
    for index, found in enumerate(classify_multilabel(levels, INDEPENDENT, level / 254, top=254)):
        expected = classify(levels[index : index + 1], alone, level / 254, top=254)
        assert np.array_equal(found.mask > 0, expected == 1)
        assert (found.mask > 0).sum() == 255 - level


def test_rows_of_any_width_are_decided(monkeypatch: pytest.MonkeyPatch):
    levels = np.random.default_rng(0).integers(0, 255, (2, 5, 40), np.uint16)
    expected = classify(levels, INDEPENDENT, top=254)
    for pixels_together in (1, 40, 41, 10**6):
        monkeypatch.setattr("pipeline.mosaic.classify.CHUNK_PIXELS", pixels_together)
        assert np.array_equal(classify(levels, INDEPENDENT, top=254), expected)


@pytest.mark.parametrize("level_type", ["uint8", "uint16", "float32"])
def test_nodata_is_stored_as_what_is_read_as_invalid(level_type: LevelType):
    top = 1 if level_type == "float32" else TOP_LEVEL[level_type]
    stored = np.array([0, top, stored_nodata(level_type)], level_type)
    assert as_levels(stored)[2] == INVALID
    assert (as_levels(stored)[:2] != INVALID).all()
    assert as_integers(stored)[2] == np.iinfo(as_integers(stored).dtype).max
