"""Spatial index of class pixels: pixel counts per cell, to draw a pixel of any class uniformly without searching."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.training.data.blocks import Starts, plan_blocks
from pipeline.training.data.splits import Area
from pipeline.training.labels.polygon_labels import UNLABELLED

CELL = 64
"""Side in pixels of the cells whose pixels are counted."""
BLOCK = 16 * CELL
"""Side in pixels of the blocks that are counted at a time; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class ClassCells:
    """Pixel counts of one class in one area, by cell."""

    cells: NDArray[np.intp]
    """`(n,)` indices of the cells with at least one pixel, in row order; ascending."""
    cumulative: NDArray[np.int64]
    """`(n,)` cumulative pixel counts of these cells."""

    @property
    def pixels(self) -> int:
        """Pixels in all cells."""
        return int(self.cumulative[-1]) if len(self.cumulative) else 0

    def locate(self, number: int) -> tuple[int, int]:
        """The cell of pixel `number` (from 0), and the pixel's number in that cell."""
        at = int(np.searchsorted(self.cumulative, number, side="right"))
        return int(self.cells[at]), number - (int(self.cumulative[at - 1]) if at else 0)


class ClassIndex:
    """The pixels of an area that a core can cover: of each class, and all labelled ones."""

    def __init__(self, area: Area, core_size: int) -> None:
        """Read every label of the area once."""
        self.area = area
        self.starts: Starts = area.starts(core_size)
        grid = area.source.scene.grid
        self._across = -(-grid.width // CELL)
        counts = self._count(grid.shape)
        self.classes = tuple(_class_cells(plane) for plane in counts[:-2])
        self.labelled = _class_cells(counts[-2])
        self.wholly_labelled = self.labelled.pixels == counts[-1].sum(dtype=np.int64)

    def draw_start(self, rng: Generator, class_index: int | None = None) -> tuple[int, int]:
        """`(row, col)` of a core that contains a uniformly drawn pixel of a class, or any labelled pixel."""
        if class_index is None and self.wholly_labelled:
            return self.starts.draw(rng)
        cells_of = self.labelled if class_index is None else self.classes[class_index]
        cell, number = cells_of.locate(int(rng.integers(cells_of.pixels)))
        window = self._window(cell)
        planes = self._planes(window)
        row, col = divmod(int(np.flatnonzero(planes[-2 if class_index is None else class_index])[number]), window.width)
        return self.starts.draw(rng, (window.row_off + row, window.col_off + col))

    def _count(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """Pixels of each plane in each cell, `(classes + 2, rows, cols)`."""
        rows = groupby(plan_blocks(shape, BLOCK), key=lambda block: block.row_off)
        strips = [[_sum_cells(self._planes(window)) for window in windows] for _, windows in rows]
        return np.concatenate([np.concatenate(strip, axis=2) for strip in strips], axis=1)

    def _planes(self, window: Window) -> NDArray[np.bool_]:
        """`(classes + 2, height, width)`: of the pixels that a core can cover, each class, all labelled, and all."""
        target = self.area.source.target(window)
        covered = self.starts.reach(window)[None] if self.area.held_out else np.ones((1, *target.shape[1:]), bool)
        labelled = (target != UNLABELLED).any(axis=0, keepdims=True)
        return np.asarray(np.concatenate([target == 1, labelled, covered]) & covered)

    def _window(self, cell: int) -> Window:
        row, col = (CELL * k for k in divmod(cell, self._across))
        height, width = self.area.source.scene.grid.shape
        return Window(col, row, min(CELL, width - col), min(CELL, height - row))


def _sum_cells(planes: NDArray[np.bool_]) -> NDArray[np.int32]:
    """`(n, height, width)` -> pixels `(n, rows, cols)` in each cell."""
    _, height, width = planes.shape
    strips = np.add.reduceat(planes, np.arange(0, height, CELL), axis=1, dtype=np.int32)
    return np.asarray(np.add.reduceat(strips, np.arange(0, width, CELL), axis=2))


def _class_cells(counts: NDArray[np.int32]) -> ClassCells:
    cells = np.flatnonzero(counts)
    return ClassCells(cells=cells, cumulative=np.cumsum(counts.ravel()[cells], dtype=np.int64))
