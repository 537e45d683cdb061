"""Right and wrong, pixel by pixel: the codes of the error map and the raster they go to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import RasterGrid
from pipeline.mosaic import RasterProfile

RIGHT, HIT, FALSE_ALARM, MISS, CONFUSED, NOT_COUNTED = 0, 1, 2, 3, 4, 255
"""Codes of a pixel; all classes are looked at together, see `error_codes`."""
MEANINGS: Mapping[int, str] = {
    RIGHT: "right, no class",
    HIT: "hit",
    FALSE_ALARM: "false alarm",
    MISS: "miss",
    CONFUSED: "wrong class",
    NOT_COUNTED: "not counted (nodata or unlabelled)",
}
COLOURS: Mapping[int, tuple[int, int, int, int]] = {
    RIGHT: (238, 238, 238, 255),
    HIT: (96, 96, 96, 255),
    FALSE_ALARM: (230, 159, 0, 255),
    MISS: (86, 180, 233, 255),
    CONFUSED: (204, 121, 167, 255),
    NOT_COUNTED: (255, 255, 255, 0),
}
"""Code -> RGBA; Okabe and Ito's palette (Wong 2011, Nature Methods 8:441), which colour-blind readers tell apart."""


def error_codes(
    predicted: NDArray[np.bool_], labelled: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """What became of each pixel, over all classes.

    `wrong class`: one class was missed and another falsely found; `miss` and `false alarm`: only that happened;
    `hit`: every class right and at least one there; `right, no class`: every class right and none there.

    Args:
        predicted: `(classes, height, width)`, without a background.
        labelled: same shape.
        counted: same shape; a pixel that counts for no class is `not counted`.

    Returns:
        `(height, width)` codes.

    >>> one = np.array([[[True, True, False, False]]])
    >>> error_codes(one, one[..., ::-1], one | True).tolist()
    [[2, 2, 3, 3]]
    """
    missed = (labelled & ~predicted & counted).any(axis=0)
    alarmed = (predicted & ~labelled & counted).any(axis=0)
    codes: NDArray[np.uint8] = np.where((labelled & predicted & counted).any(axis=0), HIT, RIGHT).astype(np.uint8)
    codes[alarmed] = FALSE_ALARM
    codes[missed] = MISS
    codes[missed & alarmed] = CONFUSED
    codes[~counted.any(axis=0)] = NOT_COUNTED
    return codes


def is_wrong(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """False alarms, misses and wrong classes."""
    return (codes >= FALSE_ALARM) & (codes <= CONFUSED)


def error_form(grid: RasterGrid, tags: Mapping[str, str], compress: Literal["zstd", "deflate"]) -> RasterProfile:
    """The form of `errors.tif`: codes with a colour table, their meanings in the tags."""
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
