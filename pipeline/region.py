"""One region from raster to finished rows: read, predict, blend, store.

A region is what one process with one device does without asking anybody. Everything it needs travels
in a RegionJob, which pickles; its result is a pair of plain GeoTIFFs that cover the region's core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batches import RawStrip, read_strips
from pipeline.blend import Blend, Share, StripBlender, covering, plan_shares, to_levels
from pipeline.card import ModelCard
from pipeline.engine import Engine
from pipeline.errors import ModelError
from pipeline.glance import Glance, GlanceTaker
from pipeline.grid import RasterGrid
from pipeline.levels import BLOCK
from pipeline.mosaic import MosaicSpec, MosaicWriter, mask_form, probability_form, write_cog
from pipeline.mosaic_strips import RasterForm
from pipeline.normalize import input_transform
from pipeline.overviews import overview_count
from pipeline.predictor import ArrayFunction, InferenceSpec, Predictor, Prepared, identity_of, resolve_device
from pipeline.scene import Scene
from pipeline.tiling import Region, TilePlan

Watch = Callable[[int], None]
"""Told the number of scene pixels finished since the last call."""


@dataclass(frozen=True, kw_only=True)
class RegionJob:
    """What every region of a scene has in common."""

    scene: Scene
    """The scene."""
    plan: TilePlan
    """Its global tile plan."""
    card: ModelCard
    """What the predictor takes and gives."""
    identity: str | None
    """What decides the predictor's results, wherever it runs; None for a plain function."""
    precision: str
    """The number format that `choose_precision` proved for this scene; a plain function runs as it is."""
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
    folder: Path
    """An existing folder for region rasters alone; every worker must see it."""

    def path(self, kind: str, region: Region, attempt: str) -> Path:
        """The file of one attempt at a region: `kind` is `probability` or `mask`."""
        return self.folder / f"{kind}-{region.index:05d}-{attempt}.tif"


@dataclass(frozen=True, kw_only=True)
class RegionResult:
    """What one region did."""

    region: Region
    """Which one."""
    attempt: str
    """Names its rasters: a worker thought lost may still be writing its own."""
    tiles_run: int
    """Tiles that went through the network."""
    tiles_skipped: int
    """Tiles without a valid pixel."""
    valid_pixels: int
    """Pixels of the core that are not nodata."""
    glance: Glance
    """The core at screen size."""


def infer_region(
    job: RegionJob, region: Region, predictor: Predictor | ArrayFunction, watch: Watch | None = None
) -> RegionResult:
    """Run a region and leave its `probability-` and `mask-` rasters in the job's folder."""
    _check_identity(job, predictor)
    rows, cols = plan_shares(job.plan.rows, job.blend), plan_shares(job.plan.cols, job.blend)
    run = _RegionRun(job, region, predictor, rows, cols)
    attempt = uuid4().hex[:8]
    with _mosaic_writer(job, region, attempt) as writer:
        for stored in run:
            writer.write(stored)
            if watch is not None:
                watch(stored.shape[1] * stored.shape[2])
    return RegionResult(
        region=region,
        attempt=attempt,
        tiles_run=run.tiles_run,
        tiles_skipped=run.tiles_total - run.tiles_run,
        valid_pixels=run.valid_pixels,
        glance=run.taker.glance,
    )


def join_regions(job: RegionJob, results: Sequence[RegionResult], folder: Path) -> None:
    """Publish the regions' rasters as one `probability.tif` and one `mask.tif` in a folder."""
    for kind, form in _forms(job, job.scene.grid).items():
        parts = [(job.path(kind, result.region, result.attempt), result.region.core) for result in results]
        write_cog(parts, folder / f"{kind}.tif", form)


def _mosaic_writer(job: RegionJob, region: Region, attempt: str) -> MosaicWriter:
    forms = _forms(job, job.scene.grid.part(region.core))
    probability, mask = ((job.path(kind, region, attempt), form) for kind, form in forms.items())
    overviews = overview_count(job.scene.grid.shape, BLOCK)
    return MosaicWriter(probability, mask, card=job.card, threshold=job.threshold, overviews=overviews)


def _forms(job: RegionJob, grid: RasterGrid) -> dict[str, RasterForm]:
    """What the rasters of a part of the scene are."""
    return {
        "probability": probability_form(grid, job.card, job.mosaic, job.tags),
        "mask": mask_form(grid, job.card, job.mosaic, job.tags),
    }


def _check_identity(job: RegionJob, predictor: Predictor | ArrayFunction) -> None:
    """One scene is one model's work: a worker of another kind would leave seams."""
    found = identity_of(predictor)
    if found != job.identity:
        raise ModelError(
            f"the workers run the model in different ways, here as {found} and elsewhere as {job.identity}; "
            "name inference.precision and inference.device, or use workers of one kind"
        )


class _RegionRun:
    """Iterates over the stored rows of a region's core, top to bottom, and counts tiles."""

    def __init__(
        self,
        job: RegionJob,
        region: Region,
        predictor: Predictor | ArrayFunction,
        rows: tuple[Share, ...],
        cols: tuple[Share, ...],
    ) -> None:
        core = region.core
        self._job, self._core = job, core
        self._span = slice(core.col_off, core.col_off + core.width)
        self._tile_rows = covering(rows, core.row_off, core.row_off + core.height)
        self._tile_cols = covering(cols, self._span.start, self._span.stop)
        self._shares = rows
        device = predictor.device if isinstance(predictor, Prepared) else resolve_device("cpu")
        if isinstance(predictor, Prepared):
            predictor = predictor.ready(job.precision)
        transform = input_transform(job.scene, job.card.normalization)
        self._engine = Engine(predictor, job.card, transform, device=device, batch_size=job.inference.batch_size)
        self._blender = StripBlender(rows, cols, span=self._span, classes=len(job.card.classes), device=device)
        self.taker = GlanceTaker(job.scene.grid.shape, core, len(job.scene.bands), job.scene.dtype)
        self.valid_pixels = 0
        self.tiles_run = 0
        self.tiles_total = len(self._tile_rows) * len(self._tile_cols)

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        job = self._job
        strips = read_strips(job.scene, job.plan, self._tile_rows, self._tile_cols, threads=job.threads)
        for strip in strips:
            self._predict(strip)
            self.taker.see(strip, job.plan.rows.starts[strip.row] - job.plan.rows.margin)
            top, mean, valid = self._blender.end_strip(
                strip.row, self._valid_share(strip), last=strip.row == self._tile_rows[-1]
            )
            first = max(self._core.row_off - top, 0)
            stop = self._core.row_off + self._core.height - top
            if first < min(stop, len(valid)):
                self.valid_pixels += int(torch.count_nonzero(valid[first:stop]))
                yield to_levels(mean[:, first:stop], valid[first:stop], job.mosaic.dtype)

    def _predict(self, strip: RawStrip) -> None:
        plan = self._job.plan
        lefts = [plan.cols.starts[col] - plan.cols.margin for col in self._tile_cols]
        tile = (plan.rows.tile, plan.cols.tile)
        for position, probabilities in self._engine.run_strip(strip, lefts, tile, most=plan.shape[1]):
            self._blender.add(self._tile_cols[position], probabilities)
            self.tiles_run += 1

    def _valid_share(self, strip: RawStrip) -> torch.Tensor:
        """Validity of the scene pixels that this strip contributes to."""
        share, margin = self._shares[strip.row], self._job.plan.rows.margin
        rows = slice(margin + share.skip, margin + share.skip + len(share.factor))
        cols = slice(self._span.start - strip.left, self._span.stop - strip.left)
        return torch.from_numpy(strip.valid[rows, cols])
