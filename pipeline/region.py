"""One region from raster to finished rows: read, predict, blend, store.

A region is what one process with one device does without asking anybody: what it needs and what it leaves is told
in `region_job`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.allocator import give_back, keep_memory
from pipeline.batches import read_strips
from pipeline.blend import StripBlender, covering, plan_shares, to_levels
from pipeline.engine import (
    Engine,
    Member,
    PlainReady,
    TileRow,
    check_range,
    least_batch_size,
    ran_out_of_memory,
    resolve_batch_size,
)
from pipeline.errors import ModelError, WorldError
from pipeline.glance import GlanceTaker
from pipeline.lanes import resolve_lanes
from pipeline.levels import BLOCK
from pipeline.mosaic import MosaicWriter
from pipeline.normalize import input_transform
from pipeline.overviews import overview_count
from pipeline.predictor import ArrayFunction, Predictor, Prepared, identity_of
from pipeline.processors import usable_cpus
from pipeline.region_job import RegionJob, RegionRasters, RegionResult, raster_forms
from pipeline.tiling import Region, halve_region
from pipeline.transfer import CudaTransfer, DirectTransfer, FinishedRows, LoadedStrip, Transfer

log = logging.getLogger(__name__)

Watch = Callable[[int], None]
"""Told the number of scene pixels finished since the last call."""


def infer_region(
    job: RegionJob, region: Region, predictor: Predictor | ArrayFunction, watch: Watch | None = None
) -> RegionResult:
    """Run a region and leave its `probability-` and `mask-` rasters in the job's folder."""
    _check_identity(job, predictor)
    device = predictor.device if isinstance(predictor, Prepared) else torch.device("cpu")
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return _infer(job, region, predictor, watch)
    finally:
        give_back()


def _infer(job: RegionJob, region: Region, predictor: Predictor | ArrayFunction, watch: Watch | None) -> RegionResult:
    """Run a region, in halves where the device has no room for its strips."""
    try:
        run = _RegionRun(job, region, predictor)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        halves = halve_region(job.plan, region)
        if len(halves) == 1:
            raise WorldError(
                f"no memory for strips that are one tile ({region.core.width} px) wide; "
                "set a smaller tiling.tile_size, or run on a larger machine"
            ) from error
        log.warning("no memory for strips of %d columns: %s; going on with halves", region.core.width, error)
    else:
        return _store(job, region, run, watch)
    return _side_by_side(region, [_infer(job, half, predictor, watch) for half in halves])


def _store(job: RegionJob, region: Region, run: _RegionRun, watch: Watch | None) -> RegionResult:
    """Write what a run yields."""
    attempt = uuid4().hex[:8]
    with _mosaic_writer(job, region, attempt) as writer, closing(run.stored_rows()) as finished:
        for stored in finished:
            writer.write(stored)
            if watch is not None:
                watch(stored.shape[1] * stored.shape[2])
    return RegionResult(
        region=region,
        rasters=(RegionRasters(core=region.core, attempt=attempt),),
        tiles_run=run.tiles_run,
        tiles_skipped=run.tiles_total - run.tiles_run,
        valid_pixels=run.valid_pixels,
        glance=run.taker.glance,
    )


def _side_by_side(region: Region, results: Sequence[RegionResult]) -> RegionResult:
    """The result of a region from those of its parts, left to right; tiles between two parts were run twice."""
    glances = [result.glance for result in results]
    return RegionResult(
        region=region,
        rasters=tuple(raster for result in results for raster in result.rasters),
        tiles_run=sum(result.tiles_run for result in results),
        tiles_skipped=sum(result.tiles_skipped for result in results),
        valid_pixels=sum(result.valid_pixels for result in results),
        glance=replace(glances[0], pixels=np.concatenate([glance.pixels for glance in glances], axis=2)),
    )


def _mosaic_writer(job: RegionJob, region: Region, attempt: str) -> MosaicWriter:
    forms = raster_forms(job, job.scene.grid.part(region.core))
    probability, mask = ((job.path(kind, region, attempt), form) for kind, form in forms.items())
    overviews = overview_count(job.scene.grid.shape, BLOCK)
    return MosaicWriter(probability, mask, card=job.card, threshold=job.threshold, overviews=overviews)


def _check_identity(job: RegionJob, predictor: Predictor | ArrayFunction) -> None:
    """One scene is one model's work: a worker of another kind would leave seams."""
    found = identity_of(predictor)
    if found != job.identity:
        raise ModelError(
            f"the workers run the model in different ways, here as {found} and elsewhere as {job.identity}; "
            "name inference.precision and inference.device, or use workers of one kind"
        )


class _RegionRun:
    """Makes the stored rows of a region's core, top to bottom, and counts tiles."""

    def __init__(self, job: RegionJob, region: Region, predictor: Predictor | ArrayFunction) -> None:
        plan, core = job.plan, region.core
        self._job, self._core = job, core
        self._rows, cols = plan_shares(plan.rows, job.blend), plan_shares(plan.cols, job.blend)
        self._span = slice(core.col_off, core.col_off + core.width)
        self._tile_rows = covering(self._rows, core.row_off, core.row_off + core.height)
        self._tile_cols = covering(cols, self._span.start, self._span.stop)
        self.tiles_total = len(self._tile_rows) * len(self._tile_cols)
        self._row = TileRow(
            lefts=tuple(plan.cols.starts[col] - plan.cols.margin for col in self._tile_cols),
            height=plan.rows.tile,
            width=plan.cols.tile,
        )
        self._engine = self._build_engine(predictor)
        self._blender = StripBlender(
            self._rows, cols, span=self._span, classes=len(job.card.classes), device=self._transfer.device
        )
        self.taker = GlanceTaker(job.scene.grid.shape, core, len(job.scene.bands), job.scene.dtype)
        self.valid_pixels = 0
        self.tiles_run = 0

    def stored_rows(self) -> Generator[NDArray[np.generic]]:
        """Yield `(classes, rows, columns)` as stored; an array is good until two more have been asked for."""
        travelling: deque[FinishedRows] = deque()
        for rows in self._finished_rows():
            travelling.append(rows)
            if len(travelling) > self._transfer.behind:
                yield _arrived(travelling.popleft())
        while travelling:
            yield _arrived(travelling.popleft())

    def _finished_rows(self) -> Iterator[FinishedRows]:
        """Read, predict, blend and quantise."""
        job = self._job
        strips = read_strips(job.scene, job.plan, self._tile_rows, self._tile_cols, threads=job.threads)
        for predicted in self._engine.run(strips):
            batch = predicted.batch
            for position, probabilities in zip(batch.positions, predicted.tiles, strict=True):
                self._blender.add(self._tile_cols[position], probabilities)
            self.tiles_run += len(batch.positions)
            if batch.ends_strip:
                yield from self._end_strip(batch.strip)

    def _build_engine(self, predictor: Predictor | ArrayFunction) -> Engine:
        job, row = self._job, self._row
        plain = not isinstance(predictor, Prepared | nn.Module)
        device = predictor.device if isinstance(predictor, Prepared) else torch.device("cpu")
        if device.type == "cpu":
            keep_memory()
        asked, pixels = job.inference.batch_size, row.height * row.width
        size = resolve_batch_size(device, pixels, asked=asked, most=job.plan.shape[1], plain=plain)
        batches = len(self._tile_rows) * -(-len(self._tile_cols) // size)
        threads = job.inference.threads or usable_cpus()
        self._transfer = self._build_transfer(device)
        return Engine(
            ready_members(job, predictor, (size, len(job.scene.bands), row.height, row.width), batches),
            job.card,
            row,
            self._transfer,
            batch_size=size,
            least=least_batch_size(device, size, plain=plain, deterministic=job.inference.deterministic),
            lanes=resolve_lanes(threads, plain=plain),
            threads=threads if plain else 1,
        )

    def _build_transfer(self, device: torch.device) -> Transfer:
        job = self._job
        if device.type != "cuda":
            return DirectTransfer(device)
        first, last = self._row.lefts[0], self._row.lefts[-1] + self._row.width
        tallest = max(len(share.factor) for share in self._rows)
        return CudaTransfer(
            device,
            strip=(len(job.scene.bands), self._row.height, last - first),
            dtype=job.scene.dtype,
            rows=(len(job.card.classes), tallest, self._core.width),
            stored=job.mosaic.dtype,
        )

    def _end_strip(self, strip: LoadedStrip) -> Iterator[FinishedRows]:
        """Finished rows of the core, as stored, and what is counted on the way."""
        row, margin = strip.raw.row, self._job.plan.rows.margin
        share, core = self._rows[row], self._core
        self.taker.see(strip.raw, self._job.plan.rows.starts[row] - margin)
        mean = self._blender.end_strip(row, last=row == self._tile_rows[-1])
        first = max(core.row_off - share.start, 0)
        stop = min(core.row_off + core.height - share.start, mean.shape[1])
        if first >= stop:
            return
        rows = slice(margin + share.skip + first, margin + share.skip + stop)
        cols = slice(self._span.start - strip.raw.left, self._span.stop - strip.raw.left)
        self.valid_pixels += strip.raw.count_valid(rows, cols)
        levels = to_levels(mean[:, first:stop], strip.validity(rows, cols), self._job.mosaic.dtype)
        yield self._transfer.fetch(levels, self._engine.range.take())


def _arrived(rows: FinishedRows) -> NDArray[np.generic]:
    stored, extremes = rows.wait()
    check_range(*extremes)
    return stored


def ready_members(
    job: RegionJob, predictor: Predictor | ArrayFunction, shape: tuple[int, int, int, int], batches: int
) -> list[Member]:
    """The networks of a predictor in the job's precision, each with its own normalisation of the scene.

    Args:
        job: says how they are run.
        predictor: a model, or a plain function or torch module, which is its own only member.
        shape: `(N, bands, H, W)` of every batch.
        batches: about how many there will be.
    """
    if not isinstance(predictor, Prepared):
        return [(PlainReady(predictor, job.card), input_transform(job.scene, job.card.normalization))]
    return [
        (
            member.ready(job.precision, batches=batches, shape=shape, deterministic=job.inference.deterministic),
            input_transform(job.scene, member.card.normalization),
        )
        for member in predictor.members
    ]
