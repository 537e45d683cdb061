"""Scanline rasterization of an area: its pixels as runs along rows, by pixel centres.

Runs are computed from the borders of the area, row by row, so no mask of a scene is held in memory, and a row does not
depend on the window it is read in. A border crosses the middle of a row at some columns; the pixels of the area lie
between an odd and the next even crossing:

    crossings   ·    |===========|      |==|       ·
    runs             left        right  left right

A centre on a border belongs to the area to its left, and below: areas that share a border share no pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.grid.area import Area
from pipeline.grid.area_rings import DECIMALS, area_rings_px
from pipeline.grid.geographic import Points
from pipeline.grid.raster_grid import RasterGrid

ROWS_PER_CHUNK = 1024
"""Rows that are processed together when all pixels are counted."""

Runs = NDArray[np.int64]
"""`(n, 3)`: row, first column, one past the last; from top to bottom, from left to right, never empty or touching."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AreaPixels:
    """Which pixels of a scene lie in an area; may be none or all of them."""

    name: str
    """Name of the area's file."""
    width: int
    """Columns of the scene."""
    edge_table: NDArray[np.float64]
    """`(n, 4)`, an edge of a border each: column and row of its upper end, columns per row, row of its lower end."""
    count: int
    """Pixels of the scene that lie in the area."""
    digest: str
    """SHA-256 of all runs; equal for equal pixels, however the area was drawn."""

    def runs(self, top: int, bottom: int) -> Runs:
        """The pixels of the area in rows `top` up to, not including, `bottom`."""
        return _runs(self.edge_table, self.width, top, bottom)

    def columns(self, top: int, bottom: int) -> NDArray[np.bool_]:
        """`(width,)`: whether a column holds a pixel of the area in these rows."""
        runs = self.runs(top, bottom)
        steps = np.bincount(runs[:, 1], minlength=self.width + 1) - np.bincount(runs[:, 2], minlength=self.width + 1)
        return np.asarray(np.cumsum(steps)[:-1] > 0)


def rasterize_area(area: Area, grid: RasterGrid) -> AreaPixels | None:
    """The pixels of a grid that lie in an area; None when all do.

    Raises:
        SceneError: the area cannot be projected to the CRS of the grid.
    """
    edge_table = _edges_of(area_rings_px(grid, area), grid.height)
    count, digest = 0, hashlib.sha256(f"{grid.height} x {grid.width}".encode())
    for top in range(0, grid.height, ROWS_PER_CHUNK):
        runs = _runs(edge_table, grid.width, top, min(top + ROWS_PER_CHUNK, grid.height))
        count += int((runs[:, 2] - runs[:, 1]).sum())
        digest.update(runs.astype("<i8").tobytes())
    if count == grid.height * grid.width:
        return None
    return AreaPixels(name=area.name, width=grid.width, edge_table=edge_table, count=count, digest=digest.hexdigest())


def invert_runs(runs: Runs, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of a window that are not in `runs`, in order, as row, first column, one past the last.

    >>> [*invert_runs(np.array([(4, 2, 5), (4, 7, 9)]), 4, 6, 3, 8)]
    [(4, 5, 7), (5, 3, 8)]
    """
    ends = np.column_stack([np.arange(top, bottom), *[np.full(bottom - top, right)] * 2])
    ordered = np.concatenate([runs, ends])
    ordered = ordered[np.lexsort((ordered[:, 1], ordered[:, 0]))]
    row, first, last = ordered.T
    start = np.full(len(row), left)
    same = row[1:] == row[:-1]
    start[1:][same] = np.maximum(last[:-1][same], left)
    stop = np.minimum(first, right)
    wide = start < stop
    return zip(row[wide].tolist(), start[wide].tolist(), stop[wide].tolist(), strict=True)


def _edges_of(rings: Sequence[Points], height: int) -> NDArray[np.float64]:
    """The edges that cross the middle of a row, see `AreaPixels.edge_table`."""
    ends = [np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in rings]
    edge_table = np.concatenate(ends) if ends else np.empty((0, 4))
    upward = edge_table[:, 1] > edge_table[:, 3]
    edge_table[upward] = edge_table[upward][:, [2, 3, 0, 1]]
    first, stop = _rows_of(edge_table[:, 1], edge_table[:, 3])
    edge_table = edge_table[(np.maximum(first, 0) < np.minimum(stop, height))]
    left, top, right, bottom = edge_table.T
    return np.column_stack([left, top, (right - left) / (bottom - top), bottom])


def _runs(edge_table: NDArray[np.float64], width: int, top: int, bottom: int) -> Runs:
    first, stop = _rows_of(edge_table[:, 1], edge_table[:, 3])
    first, stop = np.maximum(first, top), np.minimum(stop, bottom)
    hit = np.flatnonzero(first < stop)
    times = stop[hit] - first[hit]
    edge = np.repeat(hit, times)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(times) - times, times) + np.repeat(first[hit], times)
    across = edge_table[edge, 0] + (row + 0.5 - edge_table[edge, 1]) * edge_table[edge, 2]
    col = np.clip(np.floor(np.round(across, DECIMALS) + 0.5), 0, width).astype(np.int64)
    order = np.lexsort((col, row))
    pairs = np.column_stack([row[order][::2], col[order][::2], col[order][1::2]])
    return _joined(pairs[pairs[:, 1] < pairs[:, 2]])


def _joined(runs: Runs) -> Runs:
    """Merge runs that touch."""
    starts = np.ones(len(runs), bool)
    starts[1:] = (runs[1:, 0] != runs[:-1, 0]) | (runs[1:, 1] != runs[:-1, 2])
    ends = np.r_[starts[1:], True][: len(runs)]
    return np.column_stack([runs[starts, :2], runs[ends, 2]])


def _rows_of(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row, and one past the last, whose middles lie between `top`, included, and `bottom`."""
    first, stop = (np.ceil(height - 0.5).astype(np.int64) for height in (top, bottom))
    return first, stop
