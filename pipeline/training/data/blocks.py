"""Blocks of a grid, and the positions of squares that overlap no held-out block; integer arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.windows import Window


def plan_blocks(shape: tuple[int, int], size: int) -> list[Window]:
    """Squares of `size` that partition a grid; those at the right and bottom border are cut off."""
    height, width = shape
    return [
        Window(col, row, min(size, width - col), min(size, height - row))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]


def overlap(one: Window, other: Window) -> bool:
    """Whether two windows share a pixel."""
    return bool(
        one.row_off < other.row_off + other.height
        and other.row_off < one.row_off + one.height
        and one.col_off < other.col_off + other.width
        and other.col_off < one.col_off + one.width
    )


def clip(window: Window, bounds: Window) -> Window:
    """The part of a window inside another."""
    top, left = max(window.row_off, bounds.row_off), max(window.col_off, bounds.col_off)
    bottom = min(window.row_off + window.height, bounds.row_off + bounds.height)
    right = min(window.col_off + window.width, bounds.col_off + bounds.width)
    return Window(left, top, right - left, bottom - top)


@dataclass(frozen=True, kw_only=True, eq=False)
class Starts:
    """First pixels of all squares of one size that lie in a grid and overlap no held-out block.

    They are a union of rectangles of an uneven lattice, so that one is drawn without rejection sampling:

        rows[i] <= row < rows[i + 1] and cols[j] <= col < cols[j + 1] and free[i, j]
    """

    size: int
    """Side of the squares in pixels."""
    rows: NDArray[np.int64]
    """`(n + 1,)` lattice lines, ascending; `cols` are `(m + 1,)`."""
    cols: NDArray[np.int64]
    free: NDArray[np.bool_]
    """`(n, m)`, True = a square may start there."""

    @property
    def count(self) -> int:
        """Number of squares."""
        return int((np.diff(self.rows)[:, None] * np.diff(self.cols) * self.free).sum())

    def draw(self, rng: Generator, pixel: tuple[int, int] | None = None) -> tuple[int, int]:
        """`(row, col)` of a square, uniformly drawn; of the squares that contain `pixel`, when one is given."""
        rows, above = _within(self.rows, None if pixel is None else pixel[0], self.size)
        cols, before = _within(self.cols, None if pixel is None else pixel[1], self.size)
        free = self.free[above : above + len(rows) - 1, before : before + len(cols) - 1]
        heights, widths = np.diff(rows), np.diff(cols)
        until = np.cumsum(heights[:, None] * widths * free)
        number = int(rng.integers(until[-1]))
        cell = int(np.searchsorted(until, number, side="right"))
        i, j = divmod(cell, len(widths))
        down, along = divmod(number - (int(until[cell - 1]) if cell else 0), int(widths[j]))
        return int(rows[i]) + down, int(cols[j]) + along

    def reach(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window, `(height, width)`, lie in at least one square."""
        tops, bottoms, near_rows = _spans(self.rows, self.size, window.row_off, window.height)
        lefts, rights, near_cols = _spans(self.cols, self.size, window.col_off, window.width)
        i, j = np.nonzero(self.free[near_rows, near_cols])
        corners = np.zeros((window.height + 1, window.width + 1), np.int32)
        for rows, cols, sign in ((tops, lefts, 1), (bottoms, rights, 1), (tops, rights, -1), (bottoms, lefts, -1)):
            np.add.at(corners, (rows[i], cols[j]), sign)
        return np.asarray(corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)


def free_starts(shape: tuple[int, int], held_out: Sequence[Window], size: int) -> Starts:
    """The positions at which squares may start; along a side shorter than the square, the one that centres it.

        held-out block            ####        a square of 3 may start at
        starts on its row     .........       o, not at x: it would
                              ooxxxxxxo       overlap the block

    `size` is the side of the squares in pixels; they may overlap one another, but no held-out block.
    """
    (top, bottom), (left, right) = (_range(length, size) for length in shape)
    rows = [np.clip((b.row_off - size + 1, b.row_off + b.height), top, bottom) for b in held_out]
    cols = [np.clip((b.col_off - size + 1, b.col_off + b.width), left, right) for b in held_out]
    row_lines, col_lines = np.unique([(top, bottom), *rows]), np.unique([(left, right), *cols])
    free = np.ones((len(row_lines) - 1, len(col_lines) - 1), bool)
    for row, col in zip(rows, cols, strict=True):
        i, j = np.searchsorted(row_lines, row), np.searchsorted(col_lines, col)
        free[i[0] : i[1], j[0] : j[1]] = False
    return Starts(size=size, rows=row_lines, cols=col_lines, free=free)


def _range(length: int, size: int) -> tuple[int, int]:
    """First start and one past the last along an axis."""
    return (0, length - size + 1) if length >= size else (-((size - length) // 2), -((size - length) // 2) + 1)


def _spans(
    lines: NDArray[np.int64], size: int, start: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], slice]:
    """First and one-past-last pixel, relative to a window, that squares of each lattice cell near it cover."""
    near = slice(
        int(np.searchsorted(lines[1:] - 1 + size, start, side="right")),
        int(np.searchsorted(lines[:-1], start + length)),
    )
    first, last = lines[:-1][near] - start, lines[1:][near] - 1 + size - start
    return np.clip(first, 0, length), np.clip(last, 0, length), near


def _within(lines: NDArray[np.int64], at: int | None, size: int) -> tuple[NDArray[np.int64], int]:
    """Lattice lines clipped to the starts of squares that contain pixel `at`, and the first remaining cell's index."""
    if at is None:
        return lines, 0
    low, high = max(at - size + 1, int(lines[0])), min(at + 1, int(lines[-1]))
    first, last = int(np.searchsorted(lines, low, side="right")) - 1, int(np.searchsorted(lines, high))
    return np.clip(lines[first : last + 1], low, high), first
