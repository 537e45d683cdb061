"""Overviews of a mosaic: each level averages two by two pixels of the level before. Arithmetic only.

The pixels of a level are `ceil(n / 2)` of the level before, counted from the scene's first pixel, and a
quad that reaches past the scene repeats its last row or column. Invalid pixels are left out; a quad of
invalid pixels is invalid. So a level depends only on the level before, not on how it was cut into strips.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SLAB_ROWS = 64
"""Rows that are halved at once, so that intermediate arrays stay in the CPU's cache."""

Halve = Callable[[NDArray[np.generic], float], NDArray[np.generic]]
"""`(bands, rows, columns)` and the value of invalid pixels -> `(bands, ceil(rows / 2), ceil(columns / 2))`."""


def overview_count(shape: tuple[int, int], max_side: int) -> int:
    """How often a raster of `shape` is halved until neither side exceeds `max_side` px.

    >>> overview_count((512, 512), 512), overview_count((513, 40), 512), overview_count((10_000, 10_000), 512)
    (0, 1, 5)
    """
    return max(0, (-(-max(shape) // max_side) - 1).bit_length())


def halve_slabs(halve: Halve, pixels: NDArray[np.generic], nodata: float) -> NDArray[np.generic]:
    """`halve(pixels, nodata)`, slab by slab; a slab of one value, such as nodata, keeps it."""
    bands, rows, cols = pixels.shape
    result = np.empty((bands, -(-rows // 2), -(-cols // 2)), pixels.dtype)
    for top in range(0, rows, SLAB_ROWS):
        slab, half = pixels[:, top : top + SLAB_ROWS], result[:, top // 2 : (top + SLAB_ROWS) // 2]
        lowest = slab.min()
        half[:] = lowest if lowest == slab.max() else halve(slab, nodata)
    return result


def halve_mean(pixels: NDArray[np.generic], nodata: float) -> NDArray[np.generic]:
    """The mean of the valid pixels of each quad; whole numbers are rounded, halves upwards.

    >>> halve_mean(np.array([[[1, 2, 9], [4, 255, 255]]], np.uint8), 255).tolist()
    [[[2, 9]]]
    """
    quads = _quads(pixels)
    if pixels.dtype.kind == "f":
        return _float_mean(quads)
    wide = np.dtype(np.uint32 if pixels.dtype.itemsize > 1 else np.uint16)
    if pixels.max(initial=0) < nodata:
        total = quads[0].astype(wide)
        for quad in quads[1:]:
            np.add(total, quad, out=total)
        # Division by 4, halves upwards.
        return np.asarray((total + 2) >> 2).astype(pixels.dtype)
    valid = [quad != nodata for quad in quads]
    count = np.sum(valid, axis=0, dtype=wide)
    total = np.sum([np.where(v, quad, 0) for quad, v in zip(quads, valid, strict=True)], axis=0, dtype=wide)
    # round(total / count), halves upwards, in whole numbers.
    mean = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(count > 0, mean, nodata).astype(pixels.dtype)


def halve_mode(pixels: NDArray[np.generic], nodata: float) -> NDArray[np.generic]:
    """The commonest valid value of each quad; among equals the first, row by row.

    >>> halve_mode(np.array([[[1, 2, 0], [2, 1, 7], [255, 255, 255], [3, 255, 255]]], np.uint8), 255).tolist()
    [[[1, 0], [3, 255]]]
    """
    a, b, c, d = (quad.copy() for quad in _quads(pixels))
    first = a if pixels.max(initial=0) < nodata else _first_valid((a, b, c, d), nodata)
    # Later assignments win, so the pairs are tried from the last pixel to the first.
    mode = np.where((c == d) & (c != nodata), c, first)
    np.copyto(mode, b, where=((b == c) | (b == d)) & (b != nodata))
    np.copyto(mode, a, where=((a == b) | (a == c) | (a == d)) & (a != nodata))
    return mode


def _quads(pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
    """The upper left, upper right, lower left and lower right pixel of every quad."""
    _, rows, cols = pixels.shape
    if rows % 2 or cols % 2:
        pixels = np.pad(pixels, ((0, 0), (0, rows % 2), (0, cols % 2)), mode="edge")
    return tuple(pixels[:, down::2, across::2] for down in (0, 1) for across in (0, 1))


def _float_mean(quads: tuple[NDArray[np.generic], ...]) -> NDArray[np.generic]:
    """Sums run in one order, so that the last bit is always the same."""
    valid = [~np.isnan(quad) for quad in quads]
    a, b, c, d = (np.where(v, quad, 0) for quad, v in zip(quads, valid, strict=True))
    count = np.sum(valid, axis=0, dtype=np.uint8).astype(a.dtype)
    mean = ((a + b) + (c + d)) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan).astype(a.dtype)


def _first_valid(quads: tuple[NDArray[np.generic], ...], nodata: float) -> NDArray[np.generic]:
    found = quads[-1]
    for quad in quads[-2::-1]:
        found = np.where(quad != nodata, quad, found)
    return found
