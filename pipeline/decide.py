"""Probabilities -> class decisions, in exact integers: which pixels are of which class.

The one definition that `mask.tif` and the polygons share. A level is an integer probability,
`probability = level / top`; 65535 is invalid (see `pipeline.levels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard
from pipeline.errors import SettingsError
from pipeline.levels import INVALID

NONE = 0
"""Mask value of a valid pixel that is of no class, or of the background."""
NODATA = 255
"""Mask value of an invalid pixel."""

ROUNDING = 1e-6
"""Levels; a threshold of `k / top` computed in floating point still means level `k`."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Exclusive classes of one block: what is traced together."""

    mask: NDArray[np.uint8]
    """`(height, width)`: class values, 0 = none, 255 = nodata."""
    level: NDArray[np.uint16]
    """`(height, width)`: the level of the pixel's class; any value where the mask is 0 or 255."""


def resolve_threshold(card: ModelCard, threshold: float | None, top: int) -> int:
    """The least level that is of a class: `level >= it` equals `probability >= threshold`.

    Args:
        card: says what decides when `threshold` is None.
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
            "the most probable one wins; leave it out"
        )
    value = card.threshold if threshold is None else threshold
    if not 0 < value <= 1:
        raise SettingsError(f"threshold must be above 0 and at most 1, not {value}")
    return max(1, math.ceil(value * top - ROUNDING))


def decide(
    levels: NDArray[np.uint16], card: ModelCard, threshold: float | None = None, *, top: int
) -> NDArray[np.uint8]:
    """The class of each pixel, for `mask.tif`.

    Softmax: the most probable class, ties to the first. Sigmoid: the most probable of the classes that
    reach the threshold, ties to the first.

    Args:
        levels: `(classes, height, width)`, 0..`top`, 65535 = invalid.
        card: the model's; gives each class its mask value.
        threshold: in (0, 1], or None for the card's; sigmoid only.
        top: the level of probability 1: 254 or 65534.

    Returns:
        `(height, width)`: class values, 0 = none or background, 255 = nodata.

    Raises:
        SettingsError: see `resolve_threshold`.
    """
    least = resolve_threshold(card, threshold, top)
    exclusive = card.activation == "softmax"
    mask, best = _most_probable(levels, card.mask_values)
    if not exclusive:
        np.copyto(mask, np.uint8(NONE), where=best < least)
    np.copyto(mask, np.uint8(NODATA), where=_invalid(levels))
    return mask


def decide_apart(
    levels: NDArray[np.uint16], card: ModelCard, threshold: float | None = None, *, top: int
) -> Iterator[Decision]:
    """The decisions that become polygons: one for all exclusive classes, or one per independent class.

    The classes of a sigmoid model may overlap, so each is decided on its own. Their number and order
    depend on the card alone. Arguments and errors as for `decide`.
    """
    invalid = _invalid(levels)
    if card.activation == "softmax":
        resolve_threshold(card, threshold, top)
        mask, best = _most_probable(levels, card.mask_values)
        np.copyto(mask, np.uint8(NODATA), where=invalid)
        yield Decision(mask=mask, level=best)
        return
    least = resolve_threshold(card, threshold, top)
    for index, value, _ in card.foreground:
        mask = np.multiply(levels[index] >= least, np.uint8(value), dtype=np.uint8)
        np.copyto(mask, np.uint8(NODATA), where=invalid)
        yield Decision(mask=mask, level=levels[index])


def _invalid(levels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """`(height, width)`: True where any class is invalid."""
    invalid: NDArray[np.bool_] = levels[0] == INVALID
    for level in levels[1:]:
        invalid |= level == INVALID
    return invalid


def _most_probable(levels: NDArray[np.uint16], values: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """The mask value and the level of each pixel's most probable class, the first among equals."""
    best = levels[0].copy()
    mask = np.full(best.shape, values[0], np.uint8)
    for level, value in zip(levels[1:], values[1:], strict=True):
        np.copyto(mask, np.uint8(value), where=level > best)
        np.maximum(best, level, out=best)
    return mask, best
