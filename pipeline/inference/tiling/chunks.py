"""Chunks of whole storage blocks that are decoded together, the same for all regions.

strips ──rows, and columns of wanted tiles──▶ row bands of the chunks that they touch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.scene import AxisMapping, Scene

CHUNK_ROWS = 512
"""Target height of a chunk, rounded up to whole storage blocks."""
CHUNK_COLS = 1024
"""Target width of a chunk, rounded up to whole storage blocks."""
MIN_CHUNK_ROWS = 64
"""Lowest height of a chunk that is a part of large blocks."""
MAX_PART_BYTES = 2**26
"""Bytes of pixels in a chunk that is a part of large blocks."""
MAX_CHUNK_ROWS = 1024
"""Height up to which a chunk grows to hold whole storage blocks of files with larger pixels."""


@dataclass(frozen=True, kw_only=True)
class StripRequest:
    """The pixels that one strip needs."""

    rows: NDArray[np.intp]
    """Scene row of each of its rows."""
    spans: tuple[tuple[int, int], ...]
    """First and one-past-last scene columns of the windows that are wanted."""


@dataclass(frozen=True, kw_only=True)
class RowBand:
    """The chunks of one row band of the scene that are needed."""

    bottom: int
    """One past the band's last scene row."""
    windows: tuple[Window, ...]
    """The chunks that a strip needs, from left to right."""


def chunk_shape(scene: Scene) -> tuple[int, int]:
    """Rows and columns of a chunk: whole storage blocks of the files that are not resampled, else round figures.

    Where blocks are so large that a row of them stays decoded between chunks, a chunk is a part of that row, over the
    whole width. It is enlarged for the blocks of coarser files, to `MAX_CHUNK_ROWS` rows at most, to decode few of
    them twice.
    """
    stored = [
        (layer, (1, layer.cols.stored) if file.resident_bytes else file.block_shape)
        for layer in scene.layers
        for file in layer.files
    ]
    rows = _whole_blocks(_target_rows(scene), MAX_CHUNK_ROWS, [(layer.rows, block[0]) for layer, block in stored])
    cols = _whole_blocks(CHUNK_COLS, scene.grid.width, [(layer.cols, block[1]) for layer, block in stored])
    return rows, cols


def _target_rows(scene: Scene) -> int:
    """Rows of a chunk: `CHUNK_ROWS`, or fewer where chunks are as wide as the scene, for `MAX_PART_BYTES`."""
    if not any(file.resident_bytes for file in scene.files):
        return CHUNK_ROWS
    row_bytes = scene.grid.width * len(scene.bands) * np.dtype(scene.dtype).itemsize
    return max(MIN_CHUNK_ROWS, min(CHUNK_ROWS, MAX_PART_BYTES // row_bytes))


def _whole_blocks(target: int, largest: int, blocks: Sequence[tuple[AxisMapping, int]]) -> int:
    """Scene pixels of whole storage blocks along one axis, `target` or somewhat more.

    >>> from fractions import Fraction
    >>> half = AxisMapping(stored=500, outputs=1000, first=Fraction(0), last=Fraction(500))
    >>> _whole_blocks(512, 1024, [(AxisMapping.over(1000, 1000), 200), (half, 400)])
    800
    """
    own = sorted({block for axis, block in blocks if axis.is_identity})
    if not own:
        return target
    step = math.lcm(*own) if math.lcm(*own) <= largest else own[-1]
    others = (math.ceil(block / axis.step) for axis, block in blocks if not axis.is_identity)
    wanted = max([target, *(size for size in others if size <= largest)])
    return -(-wanted // step) * step


def plan_row_bands(scene: Scene, needs: Sequence[StripRequest]) -> list[RowBand]:
    """Whole chunks that cover what strips need, for each row band from the first to the last of them."""
    height, width = scene.grid.shape
    down, across = chunk_shape(scene)
    lefts: dict[int, set[int]] = {}
    for need in needs:
        touched = {col for lo, hi in need.spans for col in range(lo // across * across, hi, across)}
        for band in range(int(need.rows.min()) // down, int(need.rows.max()) // down + 1):
            lefts.setdefault(band, set()).update(touched)
    return [
        RowBand(bottom=bottom, windows=tuple(Window(col, top, min(across, width - col), bottom - top) for col in cols))
        for top, bottom, cols in (
            (band * down, min((band + 1) * down, height), sorted(lefts.get(band, ())))
            for band in range(min(lefts), max(lefts) + 1)
        )
    ]
