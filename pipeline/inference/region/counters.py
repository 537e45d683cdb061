"""Counters and quicklook of one region, updated strip by strip."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.inference.region.clip import RegionClip
from pipeline.inference.region.job import RegionJob, RegionRasters, RegionResult
from pipeline.inference.region.quicklook import QuicklookSampler
from pipeline.inference.tiling.regions import Region
from pipeline.inference.tiling.strips import RawStrip
from pipeline.inference.tiling.tiles import Axis


class RegionCounters:
    """Counters of one region; a tile counts in the region where its core begins, however the scene is divided."""

    def __init__(self, job: RegionJob, core: Window) -> None:
        """`core`: pixels of the region."""
        self.core = core
        self._clip = None if job.area is None else RegionClip(job.area, core, job.mosaic.dtype)
        self._rows = _starting(job.plan.rows, core.row_off, core.row_off + core.height)
        self._cols = _starting(job.plan.cols, core.col_off, core.col_off + core.width)
        self._sampler = QuicklookSampler(job.scene.grid.shape, core, len(job.scene.bands), job.scene.dtype)
        self._valid_pixels = self._tiles_run = 0

    def count_tile(self, row: int, col: int) -> None:
        """Count a tile that the network ran."""
        self._tiles_run += row in self._rows and col in self._cols

    def count_strip(self, strip: RawStrip, top: int) -> None:
        """Sample a strip whose first pixel row is scene row `top`."""
        if top < self.core.row_off + self.core.height and top + strip.shape[0] > self.core.row_off:
            self._sampler.add(strip, top)

    def count_valid(self, strip: RawStrip, rows: slice, cols: slice) -> None:
        """Count pixels of the core that are not nodata; with an area, `count_stored` does it."""
        if self._clip is None:
            self._valid_pixels += strip.count_valid(rows, cols)

    def count_stored(self, stored: NDArray[np.generic]) -> None:
        """Restrict the next finished rows to the area, if any, and count its pixels."""
        if self._clip is not None:
            self._valid_pixels += self._clip.keep(stored)

    def result(self, region: Region, rasters: tuple[RegionRasters, ...]) -> RegionResult:
        """The result of the region."""
        return RegionResult(
            region=region,
            rasters=rasters,
            tiles_run=self._tiles_run,
            tiles_skipped=len(self._rows) * len(self._cols) - self._tiles_run,
            valid_pixels=self._valid_pixels,
            quicklook=self._sampler.quicklook,
        )


def _starting(axis: Axis, start: int, stop: int) -> range:
    """Indices of the tiles whose cores begin at scene pixels `start : stop`."""
    return range(bisect_left(axis.cuts, start), min(bisect_left(axis.cuts, stop), len(axis.cuts) - 1))
