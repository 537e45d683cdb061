"""Clipping of a region to an area: the tiles that contribute to it, and the pixels that are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.grid import AreaPixels, invert_runs
from pipeline.inference.blend import BlendWeights
from pipeline.mosaic import LevelType, stored_nodata


def wanted_tiles(
    area: AreaPixels, core: Window, rows: Sequence[BlendWeights], cols: Sequence[BlendWeights]
) -> list[tuple[int, ...]]:
    """For each tile row the positions of the tiles that contribute to a pixel of the area within `core`."""
    left, right, top, bottom = core.col_off, core.col_off + core.width, core.row_off, core.row_off + core.height
    spans = [slice(max(share.start, left), min(share.stop, right)) for share in cols]
    touched = (area.columns(max(share.start, top), min(share.stop, bottom)) for share in rows)
    return [tuple(k for k, span in enumerate(spans) if columns[span].any()) for columns in touched]


class RegionClip:
    """Restricts the finished rows of one region to an area, from top to bottom."""

    def __init__(self, area: AreaPixels, core: Window, stored: LevelType) -> None:
        """Bind an area to the pixels of a region, in their stored type."""
        self._area, self._nodata = area, stored_nodata(stored)
        self._left, self._right = core.col_off, core.col_off + core.width
        self._done = core.row_off

    def keep(self, stored: NDArray[np.generic]) -> int:
        """Set the pixels of the next finished rows, `(classes, rows, columns)`, to nodata outside the area.

        Returns:
            The number of remaining pixels that are not nodata.
        """
        first = self._done
        self._done += stored.shape[1]
        runs = self._area.runs(first, self._done)
        for row, start, stop in invert_runs(runs, first, self._done, self._left, self._right):
            stored[:, row - first, start - self._left : stop - self._left] = self._nodata
        kept = stored[0] == stored[0] if np.isnan(self._nodata) else stored[0] != self._nodata
        return int(np.count_nonzero(kept))
