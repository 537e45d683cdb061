from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.model.card import ModelCard
from pipeline.mosaic.classify import classify, classify_multilabel, resolve_threshold
from pipeline.mosaic.levels import INVALID, as_integers, as_levels

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
