"""Region jobs and results, and joining the rasters of regions into one mosaic.

A RegionJob pickles, so a region can run in any process; its outputs are two plain GeoTIFFs that cover its core.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from pipeline.grid import AreaPixels, RasterGrid
from pipeline.inference.blend import Blend
from pipeline.inference.region.quicklook import Quicklook
from pipeline.inference.tiling.chunks import chunk_shape
from pipeline.inference.tiling.regions import Region
from pipeline.inference.tiling.strips import PREFETCH_ROW_BANDS
from pipeline.inference.tiling.tiles import TilePlan
from pipeline.model import InferenceSpec, ModelCard
from pipeline.mosaic import WRITE_QUEUE_DEPTH, MosaicSpec, RasterProfile, mask_profile, probability_profile, write_cog
from pipeline.scene import Scene

REGION_BYTES = 3 * 2**27
"""Memory of a region's strips, on the host and on the device."""


@dataclass(frozen=True, kw_only=True)
class RegionJob:
    """Inputs shared by all regions of a scene."""

    scene: Scene
    """The scene."""
    plan: TilePlan
    """Its global tile plan."""
    card: ModelCard
    """Input and output of the predictor."""
    identity: str | None
    """Identity of the model on every worker; None for a plain function."""
    precision: str
    """The number format that `choose_precision` chose for this scene, "" before; ignored for a plain function."""
    blend: Blend
    """How tiles become one mosaic."""
    inference: InferenceSpec
    """How the predictor is run."""
    mosaic: MosaicSpec
    """How probabilities are stored."""
    threshold: float | None
    """Decides `mask.tif`; None is the card's."""
    threads: int
    """Decoding threads, 0 = one per CPU."""
    tags: Mapping[str, str]
    """Provenance, stored in the rasters."""
    area: AreaPixels | None = None
    """The pixels that the result is restricted to; None: all of the scene."""
    folder: Path
    """An existing folder that holds region rasters only."""
    key: str | None = None
    """Identity of the mosaic: scene, model, and all settings but those of polygons; None for a plain function."""

    def path(self, kind: str, region: Region, attempt: str) -> Path:
        """The file of one attempt at a region: `kind` is `probability` or `mask`."""
        return self.folder / f"{kind}-{region.index:05d}-{attempt}.tif"


@dataclass(frozen=True, kw_only=True)
class RegionRasters:
    """The probabilities and the mask of a rectangle of the scene."""

    core: Window
    """The rectangle."""
    attempt: str
    """Suffix of the file names: a worker presumed lost may still be writing its own files."""


@dataclass(frozen=True, kw_only=True)
class RegionResult:
    """Outputs and counters of one region."""

    region: Region
    """The region."""
    rasters: tuple[RegionRasters, ...]
    """Its rasters from left to right; several if the region was split for lack of memory."""
    tiles_run: int
    """Tiles that went through the network."""
    tiles_skipped: int
    """Tiles without a valid pixel, or of which no pixel is wanted."""
    valid_pixels: int
    """Pixels of the core that are not nodata in the result."""
    quicklook: Quicklook
    """The core at screen size."""

    @property
    def regions_split(self) -> int:
        """1 if it was split into narrower parts for lack of memory."""
        return int(len(self.rasters) > 1)


def max_region_columns(scene: Scene, plan: TilePlan, card: ModelCard, mosaic: MosaicSpec) -> int:
    """Columns of a region whose strips take about `REGION_BYTES`.

    Decoded chunks: two bands ahead, one being decoded, and those that a strip touches. Blending: the strip and the
    rows held from the strip above. Finished rows: while quantised, and in the write queue.
    """
    tall = chunk_shape(scene)[0]
    bands = (PREFETCH_ROW_BANDS + 2 + -(-plan.rows.tile // tall)) * tall
    decoded = bands * (len(scene.bands) * np.dtype(scene.dtype).itemsize + 1)
    blended = 2 * plan.rows.tile * 4
    finished = plan.rows.tile * (4 + (WRITE_QUEUE_DEPTH + 1) * np.dtype(mosaic.dtype).itemsize)
    return max(plan.cols.tile, REGION_BYTES // (decoded + len(card.classes) * (blended + finished)))


def join_regions(
    job: RegionJob, results: Sequence[RegionResult], folder: Path, kinds: Collection[str] = ("probability", "mask")
) -> None:
    """Publish the regions' rasters as one `probability.tif` and one `mask.tif` in a folder, or one of them."""
    for kind, form in raster_profiles(job, job.scene.grid).items():
        if kind not in kinds:
            continue
        parts = [
            (job.path(kind, result.region, raster.attempt), raster.core)
            for result in results
            for raster in result.rasters
        ]
        write_cog(parts, folder / f"{kind}.tif", form)


def raster_profiles(job: RegionJob, grid: RasterGrid) -> dict[str, RasterProfile]:
    """Profiles of the rasters of a part of the scene."""
    return {
        "probability": probability_profile(grid, job.card, job.mosaic, job.tags),
        "mask": mask_profile(grid, job.card, job.mosaic, job.tags),
    }
