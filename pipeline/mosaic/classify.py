"""Classification of pixels from stored probabilities, in exact integers.

The one definition that `mask.tif` and the polygons share. A level is an integer probability,
`probability = level / top`; the largest value of its type is invalid (see `pipeline.mosaic.levels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.model import ModelCard

Level = TypeVar("Level", bound=np.uint8 | np.uint16)
"""The type of levels; its largest value is invalid."""

NO_CLASS = 0
"""Mask value of a valid pixel of no class, or of the background."""
NODATA = 255
"""Mask value of an invalid pixel."""

CHUNK_PIXELS = 1 << 17
"""Pixels classified together; they fit into a processor's cache."""
ROUNDING_TOLERANCE = 1e-6
"""Levels; a threshold of `k / top` computed in floating point still means level `k`."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Exclusive classes of one block, which are traced together."""

    mask: NDArray[np.uint8]
    """`(height, width)`: class values, 0 = none, 255 = nodata."""
    level: NDArray[np.uint8 | np.uint16]
    """`(height, width)`: the level of the pixel's class; any value where the mask is 0 or 255."""


def resolve_threshold(card: ModelCard, threshold: float | None, top: int) -> int:
    """The smallest level that is of a class: `level >= it` equals `probability >= threshold`.

    Args:
        card: gives the threshold when `threshold` is None.
        threshold: in (0, 1], or None for the card's.
        top: the level of probability 1.

    Raises:
        SettingsError: the threshold is out of range, or the classes are exclusive and have none.

    >>> card = ModelCard(bands=("red",), classes=("roof",), threshold=0.25)
    >>> resolve_threshold(card, None, 254), resolve_threshold(card, 0.5, 254)
    (64, 127)
    """
    if threshold is not None and card.activation == "softmax":
        raise SettingsError(
            f"threshold {threshold} has no meaning for the exclusive classes {', '.join(card.classes)}: "
            "the most probable class is taken; leave it out"
        )
    value = card.threshold if threshold is None else threshold
    if not 0 < value <= 1:
        raise SettingsError(f"threshold must be above 0 and at most 1, not {value}")
    return max(1, math.ceil(value * top - ROUNDING_TOLERANCE))


def classify(
    levels: NDArray[np.uint8 | np.uint16], card: ModelCard, threshold: float | None = None, *, top: int
) -> NDArray[np.uint8]:
    """The class of each pixel, for `mask.tif`.

    Softmax: the most probable class, ties to the first. Sigmoid: the most probable of the classes that
    reach the threshold, ties to the first.

    Args:
        levels: `(classes, height, width)`, 0..`top`; the largest value of the type is invalid.
        card: the model's; gives each class its mask value.
        threshold: in (0, 1], or None for the card's; sigmoid only.
        top: the level of probability 1: 254 or 65534.

    Returns:
        `(height, width)`: class values, 0 = none or background, 255 = nodata.
    """
    least = resolve_threshold(card, threshold, top)
    exclusive = card.activation == "softmax"
    mask, best = _most_probable(levels, card.mask_values)
    if not exclusive:
        np.copyto(mask, np.uint8(NO_CLASS), where=best < least)
    return mask


def classify_multilabel(
    levels: NDArray[np.uint8 | np.uint16], card: ModelCard, threshold: float | None = None, *, top: int
) -> Iterator[Classification]:
    """The classifications that become polygons: one for all exclusive classes, or one per independent class.

    The classes of a sigmoid model may overlap, so each is classified separately. Number and order
    depend on the card only. Arguments and errors as for `classify`.
    """
    if card.activation == "softmax":
        resolve_threshold(card, threshold, top)
        mask, best = _most_probable(levels, card.mask_values)
        yield Classification(mask=mask, level=best)
        return
    least = resolve_threshold(card, threshold, top)
    invalid = _invalid(levels)
    for index, value, _ in card.foreground:
        mask = np.multiply(levels[index] >= least, np.uint8(value), dtype=np.uint8)
        np.copyto(mask, np.uint8(NODATA), where=invalid)
        yield Classification(mask=mask, level=levels[index])


def _invalid(levels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.bool_]:
    """`(height, width)`: True where any class is invalid."""
    mark = np.iinfo(levels.dtype).max
    invalid: NDArray[np.bool_] = levels[0] == mark
    for level in levels[1:]:
        invalid |= level == mark
    return invalid


def _most_probable(levels: NDArray[Level], values: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[Level]]:
    """The mask value and the level of each pixel's most probable class, the first among equals; 255 where invalid.

    A few rows at a time, so that they are read from memory once.
    """
    _, height, width = levels.shape
    mask, best = np.full((height, width), values[0], np.uint8), levels[0].copy()
    invalid = np.iinfo(levels.dtype).max
    rows = max(1, CHUNK_PIXELS // max(1, width))
    for top in range(0, height, rows):
        here = slice(top, top + rows)
        for level, value in zip(levels[1:, here], values[1:], strict=True):
            np.copyto(mask[here], np.uint8(value), where=level > best[here])
            np.maximum(best[here], level, out=best[here])
        np.copyto(mask[here], np.uint8(NODATA), where=best[here] == invalid)
    return mask, best
