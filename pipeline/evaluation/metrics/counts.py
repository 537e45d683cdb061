"""Pixels and objects counted per block of ground: the one table that every score and interval is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import TransientError
from pipeline.evaluation.error_map import error_codes, is_wrong
from pipeline.evaluation.metrics.boundary import boundary_band
from pipeline.evaluation.metrics.matching import THRESHOLDS

TP, FP, FN, TN, BORDER_SHARED, BORDER_EITHER = range(6)
"""Columns of `BlockCounts.pixels`."""
TRUTH, FOUND, MATCHED_TRUTH = 0, 1, 2
"""Columns of `BlockCounts.objects`; matched true objects per bound begin at 2, matched found ones behind them."""
MATCHED_FOUND = MATCHED_TRUTH + len(THRESHOLDS)
OBJECT_COLUMNS = MATCHED_FOUND + len(THRESHOLDS)
READ_PIXELS = 1024
"""About the side of what is read at once; a whole number of blocks."""


@dataclass(frozen=True, kw_only=True)
class PixelPlanes:
    """Decisions and labels of one window, a plane per class (the background of exclusive classes first)."""

    predicted: NDArray[np.bool_]
    """`(planes, height, width)`, True = found."""
    labelled: NDArray[np.bool_]
    """Same shape, True = of the class."""
    counted: NDArray[np.bool_]
    """Same shape, True = valid and labelled."""
    background: bool
    """Whether plane 0 is the background."""

    def part(self, rows: slice, cols: slice) -> PixelPlanes:
        """A smaller window of it."""
        at = (slice(None), rows, cols)
        return PixelPlanes(
            predicted=self.predicted[at],
            labelled=self.labelled[at],
            counted=self.counted[at],
            background=self.background,
        )

    def codes(self) -> NDArray[np.uint8]:
        """`(height, width)` codes of the error map."""
        first = int(self.background)
        return error_codes(self.predicted[first:], self.labelled[first:], self.counted[first:])


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """What was counted in each block; blocks without a pixel or an object that counts are left out."""

    row: NDArray[np.int64]
    """`(blocks,)`: first row of the block."""
    col: NDArray[np.int64]
    """`(blocks,)`: first column."""
    counted: NDArray[np.int64]
    """`(blocks,)`: pixels that count for any class."""
    wrong: NDArray[np.int64]
    """`(blocks,)`: of those, pixels wrong in any class."""
    pixels: NDArray[np.int64]
    """`(blocks, planes, 6)`: true and false positives, false and true negatives, border shared, border of either."""
    objects: NDArray[np.int64]
    """`(blocks, planes, 22)`: true objects, found objects, matched true and matched found objects per bound."""

    def __len__(self) -> int:
        return len(self.row)

    def save(self, path: Path) -> None:
        """Write all arrays, without pickle.

        Raises:
            TransientError: the disk refuses.
        """
        try:
            with path.open("wb") as file:
                np.savez_compressed(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        except OSError as error:
            raise TransientError(f"{path}: writing failed: {error}; is the disk full?") from error

    @classmethod
    def load(cls, path: Path) -> BlockCounts:
        """What `save` wrote.

        Raises:
            TransientError: it is gone or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise TransientError(
                f"{path}: the counts of a scene cannot be read back: {error}; evaluate again"
            ) from error


class BlockCounter:
    """Collects the counts of one scene, window by window."""

    def __init__(self, shape: tuple[int, int], *, planes: int, block_size: int, border: int) -> None:
        """Start with nothing counted.

        Args:
            shape: rows and columns of the scene.
            planes: classes, the background of exclusive ones included.
            block_size: side of a block in pixels.
            border: width in pixels of the band that boundary IoU looks at.
        """
        self.shape, self.size, self.border = shape, block_size, border
        self.step = block_size * max(1, READ_PIXELS // block_size)
        self._blocks = -(-shape[0] // block_size), -(-shape[1] // block_size)
        self._counted = np.zeros(self._blocks, np.int64)
        self._wrong = np.zeros(self._blocks, np.int64)
        self._pixels = np.zeros((*self._blocks, planes, 6), np.int64)
        self._objects = np.zeros((*self._blocks, planes, OBJECT_COLUMNS), np.int64)

    def windows(self) -> Iterator[list[tuple[Window, Window]]]:
        """Rows of `(core, core with halo)`; cores partition the scene and begin on blocks."""
        (height, width), step = self.shape, self.step
        for top in range(0, height, step):
            cores = [
                Window(left, top, min(step, width - left), min(step, height - top)) for left in range(0, width, step)
            ]
            yield [(core, self._widened(core)) for core in cores]

    def add(self, core: Window, wide: Window, planes: PixelPlanes) -> NDArray[np.uint8]:
        """Count the core of a window; returns its codes, `(height, width)`."""
        rows, cols = within(core, wide)
        inner = planes.part(rows, cols)
        codes = inner.codes()
        at = self._block_slices(core)
        self._counted[at] = self._sum(np.asarray(inner.counted.any(axis=0)))
        self._wrong[at] = self._sum(is_wrong(codes))
        found, true = (
            _bands(mask, planes.counted, self.border)[:, rows, cols] for mask in (planes.predicted, planes.labelled)
        )
        for column, what in enumerate((*_outcomes(inner), found & true, found | true)):
            self._pixels[(*at, slice(None), column)] = np.moveaxis(self._sum(what), 0, -1)
        return codes

    def add_objects(self, plane: int, column: int, places: NDArray[np.int64]) -> None:
        """Count objects of a class by the block in which they lie; `places` is `(objects, 2)` rows and columns."""
        block = places // self.size
        np.add.at(self._objects[:, :, plane, column], (block[:, 0], block[:, 1]), 1)

    def finish(self) -> BlockCounts:
        """The table."""
        kept = (self._counted > 0) | self._objects.any(axis=(2, 3))
        row, col = np.nonzero(kept)
        return BlockCounts(
            row=row * self.size,
            col=col * self.size,
            counted=self._counted[kept],
            wrong=self._wrong[kept],
            pixels=self._pixels[kept],
            objects=self._objects[kept],
        )

    def _widened(self, core: Window) -> Window:
        height, width = self.shape
        top, left = max(0, core.row_off - self.border), max(0, core.col_off - self.border)
        bottom = min(height, core.row_off + core.height + self.border)
        right = min(width, core.col_off + core.width + self.border)
        return Window(left, top, right - left, bottom - top)

    def _block_slices(self, core: Window) -> tuple[slice, slice]:
        first_row, first_col = core.row_off // self.size, core.col_off // self.size
        rows, cols = -(-core.height // self.size), -(-core.width // self.size)
        return slice(first_row, first_row + rows), slice(first_col, first_col + cols)

    def _sum(self, what: NDArray[np.bool_]) -> NDArray[np.int64]:
        """True pixels of each block, `(..., blocks down, blocks across)`."""
        height, width = what.shape[-2:]
        down = np.add.reduceat(what, np.arange(0, height, self.size), axis=-2, dtype=np.int64)
        total: NDArray[np.int64] = np.add.reduceat(down, np.arange(0, width, self.size), axis=-1)
        return total


def within(core: Window, wide: Window) -> tuple[slice, slice]:
    """Rows and columns of the core in its wider window."""
    top, left = int(core.row_off - wide.row_off), int(core.col_off - wide.col_off)
    return slice(top, top + int(core.height)), slice(left, left + int(core.width))


def _bands(mask: NDArray[np.bool_], counted: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of each plane near its own outline, for boundary IoU."""
    return np.stack([boundary_band(*plane, width) for plane in zip(mask, counted, strict=True)])


def _outcomes(planes: PixelPlanes) -> tuple[NDArray[np.bool_], ...]:
    """True positives, false positives, false negatives, true negatives."""
    predicted, labelled, counted = planes.predicted, planes.labelled, planes.counted
    return (
        predicted & labelled & counted,
        predicted & ~labelled & counted,
        ~predicted & labelled & counted,
        ~predicted & ~labelled & counted,
    )
