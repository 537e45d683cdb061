"""Confusion counts of pixels and objects per block: the one table that every score and interval is computed from."""

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

TP, FP, FN, TN, BOUNDARY_INTERSECTION, BOUNDARY_UNION = range(6)
"""Columns of `BlockCounts.pixels`."""
REFERENCE, PREDICTED, MATCHED_REFERENCE = 0, 1, 2
"""Columns of `BlockCounts.objects`; matched reference objects per threshold start at 2, predicted ones follow."""
MATCHED_PREDICTED = MATCHED_REFERENCE + len(THRESHOLDS)
OBJECT_COLUMNS = MATCHED_PREDICTED + len(THRESHOLDS)
READ_SIDE_PX = 1024
"""Approximate side of a window that is read at once; it is rounded down to whole blocks."""


@dataclass(frozen=True, kw_only=True)
class PixelPlanes:
    """Prediction and labels of one window, a plane per class (the background of exclusive classes first)."""

    predicted: NDArray[np.bool_]
    """`(planes, height, width)`, True = predicted as the class."""
    labelled: NDArray[np.bool_]
    """Same shape, True = of the class."""
    counted: NDArray[np.bool_]
    """Same shape, True = valid and labelled."""
    background: bool
    """Whether plane 0 is the background."""

    def crop(self, rows: slice, cols: slice) -> PixelPlanes:
        """A smaller window."""
        index = (slice(None), rows, cols)
        return PixelPlanes(
            predicted=self.predicted[index],
            labelled=self.labelled[index],
            counted=self.counted[index],
            background=self.background,
        )

    def codes(self) -> NDArray[np.uint8]:
        """`(height, width)` codes of the error map."""
        first = int(self.background)
        return error_codes(self.predicted[first:], self.labelled[first:], self.counted[first:])


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """Counts of each block; blocks without a counted pixel or object are left out."""

    row: NDArray[np.int64]
    """`(blocks,)`: first row of the block."""
    col: NDArray[np.int64]
    """`(blocks,)`: first column."""
    counted: NDArray[np.int64]
    """`(blocks,)`: pixels that count for any class."""
    wrong: NDArray[np.int64]
    """`(blocks,)`: of the counted pixels, those wrong in any class."""
    pixels: NDArray[np.int64]
    """`(blocks, planes, 6)`: TP, FP, FN, TN, and intersection and union of the boundary bands."""
    objects: NDArray[np.int64]
    """`(blocks, planes, 22)`: reference and predicted objects, matched reference and predicted ones per threshold."""

    def __len__(self) -> int:
        return len(self.row)

    def save(self, path: Path) -> None:
        """Write all arrays, without pickle."""
        try:
            with path.open("wb") as file:
                np.savez_compressed(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        except OSError as error:
            raise TransientError(f"{path}: writing failed: {error}; is the disk full?") from error

    @classmethod
    def load(cls, path: Path) -> BlockCounts:
        """Read the file that `save` wrote; TransientError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise TransientError(
                f"{path}: the counts of a scene cannot be read back: {error}; evaluate again"
            ) from error


class BlockCounter:
    """Accumulates the counts of one scene, window by window."""

    def __init__(self, shape: tuple[int, int], *, planes: int, block_size: int, band_px: int) -> None:
        """`planes` include the background of exclusive classes; `band_px` is the width of the boundary bands."""
        self.shape, self.size, self.band_px = shape, block_size, band_px
        self.step = block_size * max(1, READ_SIDE_PX // block_size)
        self._blocks = -(-shape[0] // block_size), -(-shape[1] // block_size)
        self._counted = np.zeros(self._blocks, np.int64)
        self._wrong = np.zeros(self._blocks, np.int64)
        self._pixels = np.zeros((*self._blocks, planes, 6), np.int64)
        self._objects = np.zeros((*self._blocks, planes, OBJECT_COLUMNS), np.int64)

    def windows(self) -> Iterator[list[tuple[Window, Window]]]:
        """Rows of `(core, core with halo)`; cores partition the scene and start on block borders."""
        (height, width), step = self.shape, self.step
        for top in range(0, height, step):
            cores = [
                Window(left, top, min(step, width - left), min(step, height - top)) for left in range(0, width, step)
            ]
            yield [(core, self._with_halo(core)) for core in cores]

    def add(self, core: Window, window: Window, planes: PixelPlanes) -> NDArray[np.uint8]:
        """Count the core of a window; returns its codes, `(height, width)`."""
        rows, cols = core_slices(core, window)
        inner = planes.crop(rows, cols)
        codes = inner.codes()
        blocks = self._block_slices(core)
        self._counted[blocks] = self._sum(np.asarray(inner.counted.any(axis=0)))
        self._wrong[blocks] = self._sum(is_wrong(codes))
        # Bands need the halo, so they are computed on the window and cropped to the core.
        predicted, labelled = (
            _bands(mask, planes.counted, self.band_px)[:, rows, cols] for mask in (planes.predicted, planes.labelled)
        )
        for column, mask in enumerate((*_outcomes(inner), predicted & labelled, predicted | labelled)):
            self._pixels[(*blocks, slice(None), column)] = np.moveaxis(self._sum(mask), 0, -1)
        return codes

    def add_objects(self, plane: int, column: int, pixels: NDArray[np.int64]) -> None:
        """Count objects of a class by their block; `pixels` is `(objects, 2)`, rows and columns."""
        block = pixels // self.size
        np.add.at(self._objects[:, :, plane, column], (block[:, 0], block[:, 1]), 1)

    def finish(self) -> BlockCounts:
        """The table of all blocks with a count."""
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

    def _with_halo(self, core: Window) -> Window:
        (height, width), halo = self.shape, self.band_px
        top, left = max(0, core.row_off - halo), max(0, core.col_off - halo)
        bottom = min(height, core.row_off + core.height + halo)
        right = min(width, core.col_off + core.width + halo)
        return Window(left, top, right - left, bottom - top)

    def _block_slices(self, core: Window) -> tuple[slice, slice]:
        first_row, first_col = core.row_off // self.size, core.col_off // self.size
        rows, cols = -(-core.height // self.size), -(-core.width // self.size)
        return slice(first_row, first_row + rows), slice(first_col, first_col + cols)

    def _sum(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """True pixels of each block, `(..., blocks down, blocks across)`."""
        height, width = mask.shape[-2:]

        # `reduceat` sums from one start to the next, so the last block may be smaller.
        down = np.add.reduceat(mask, np.arange(0, height, self.size), axis=-2, dtype=np.int64)
        total: NDArray[np.int64] = np.add.reduceat(down, np.arange(0, width, self.size), axis=-1)
        return total


def core_slices(core: Window, window: Window) -> tuple[slice, slice]:
    """Rows and columns of a core in its window."""
    top, left = int(core.row_off - window.row_off), int(core.col_off - window.col_off)
    return slice(top, top + int(core.height)), slice(left, left + int(core.width))


def _bands(mask: NDArray[np.bool_], counted: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """The boundary band of each plane."""
    return np.stack([boundary_band(*plane, width_px) for plane in zip(mask, counted, strict=True)])


def _outcomes(planes: PixelPlanes) -> tuple[NDArray[np.bool_], ...]:
    """True positives, false positives, false negatives, true negatives."""
    predicted, labelled, counted = planes.predicted, planes.labelled, planes.counted
    return (
        predicted & labelled & counted,
        predicted & ~labelled & counted,
        ~predicted & labelled & counted,
        ~predicted & ~labelled & counted,
    )
