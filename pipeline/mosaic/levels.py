"""Quantization of probabilities to integer levels.

`uint8` stores `round(p * 254)` and `uint16` `round(p * 65534)`; the value above the top is nodata.
`float32` stores `p` itself and NaN. Everything downstream of the mosaic works on one form: uint16
levels 0..top with 65535 for invalid, so decisions and sums are exact integers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

LevelType = Literal["uint8", "uint16", "float32"]
"""How a probability is stored."""

TOP_LEVEL: dict[LevelType, int] = {"uint8": 254, "uint16": 65534, "float32": 65534}
"""The level of probability 1."""

INVALID = 65535
"""The level of an invalid pixel."""

BLOCK = 512
"""Side of a storage block of every raster that is written, px."""


def stored_nodata(level_type: LevelType) -> float:
    """The stored value of an invalid pixel: one above the top level, or NaN."""
    return float("nan") if level_type == "float32" else TOP_LEVEL[level_type] + 1


def as_integers(stored: NDArray[np.generic]) -> NDArray[np.uint8 | np.uint16]:
    """Stored values as whole levels in the smallest type; its largest value is invalid."""
    return stored.view(np.uint8) if stored.dtype == np.uint8 else as_levels(stored)


def as_levels(stored: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Stored values of any level type -> uint16 levels, 65535 where invalid.

    >>> as_levels(np.array([0, 254, 255], np.uint8)).tolist()
    [0, 254, 65535]
    """
    if stored.dtype == np.uint16:
        return stored.view(np.uint16)
    levels: NDArray[np.uint16]
    if stored.dtype == np.uint8:
        levels = stored.astype(np.uint16)
        levels[stored == TOP_LEVEL["uint8"] + 1] = INVALID
        return levels
    invalid = np.isnan(stored)
    top = np.float32(TOP_LEVEL["float32"])
    return np.where(invalid, INVALID, np.floor(np.where(invalid, 0, stored) * top + np.float32(0.5))).astype(np.uint16)
