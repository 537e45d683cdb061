"""Error map: a code per pixel for hits, misses and false alarms, and the raster profile of `errors.tif`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import RasterGrid
from pipeline.mosaic import RasterProfile

CORRECT, TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS, NOT_COUNTED = 0, 1, 2, 3, 4, 255
"""Codes of a pixel over all classes, see `error_codes`."""
MEANINGS: Mapping[int, str] = {
    CORRECT: "right, no class",
    TRUE_POSITIVE: "hit",
    FALSE_POSITIVE: "false alarm",
    FALSE_NEGATIVE: "miss",
    WRONG_CLASS: "wrong class",
    NOT_COUNTED: "not counted (nodata or unlabelled)",
}
COLOURS: Mapping[int, tuple[int, int, int, int]] = {
    CORRECT: (238, 238, 238, 255),
    TRUE_POSITIVE: (96, 96, 96, 255),
    FALSE_POSITIVE: (230, 159, 0, 255),
    FALSE_NEGATIVE: (86, 180, 233, 255),
    WRONG_CLASS: (204, 121, 167, 255),
    NOT_COUNTED: (255, 255, 255, 0),
}
"""Code -> RGBA; Okabe and Ito's palette (Wong 2011, Nature Methods 8:441), distinguishable for colour-blind readers."""


def error_codes(
    predicted: NDArray[np.bool_], labelled: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The code `(height, width)` of each pixel over all classes, from planes `(classes, height, width)`.

    `wrong class`: a false negative of one class and a false positive of another; `miss` and `false alarm`: only one of
    them; `hit`: every class is right and at least one present; `right, no class`: every class is right, none present;
    `not counted`: the pixel counts for no class. The planes have no background.

    >>> one = np.array([[[True, True, False, False]]])
    >>> error_codes(one, one[..., ::-1], one | True).tolist()
    [[2, 2, 3, 3]]
    """
    hit = (labelled & predicted & counted).any(axis=0)
    missed = (labelled & ~predicted & counted).any(axis=0)
    false_alarm = (predicted & ~labelled & counted).any(axis=0)
    codes: NDArray[np.uint8] = np.where(hit, TRUE_POSITIVE, CORRECT).astype(np.uint8)
    codes[false_alarm] = FALSE_POSITIVE
    codes[missed] = FALSE_NEGATIVE
    codes[missed & false_alarm] = WRONG_CLASS
    codes[~counted.any(axis=0)] = NOT_COUNTED
    return codes


def is_wrong(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True for false positives, false negatives and wrong classes."""
    return (codes >= FALSE_POSITIVE) & (codes <= WRONG_CLASS)


def error_map_profile(grid: RasterGrid, tags: Mapping[str, str], compress: Literal["zstd", "deflate"]) -> RasterProfile:
    """The raster profile of `errors.tif`: codes with a colour table, their meanings in the tags."""
    meanings = {f"VALUE_{code}": meaning for code, meaning in MEANINGS.items()}
    return RasterProfile(
        grid=grid,
        dtype="uint8",
        nodata=NOT_COUNTED,
        names=("error",),
        compress=compress,
        colours=COLOURS,
        tags=(*sorted({**tags, **meanings}.items()),),
    )
