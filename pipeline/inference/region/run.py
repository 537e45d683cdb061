"""Inference of a region: read, predict, blend, store.

A region is the work of one process with one device; `job` describes its inputs and outputs. Regions one below the
other run as one stack: the cut between them costs nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import ModelError, ScenemillError, TransientError
from pipeline.grid import AreaPixels
from pipeline.inference.batch_size import is_out_of_memory
from pipeline.inference.blend import BlendWeights, StripBlender, plan_blend_weights, tiles_covering, to_levels
from pipeline.inference.engine import TileRow
from pipeline.inference.memory import trim_heap
from pipeline.inference.output_checks import check_range
from pipeline.inference.region.clip import wanted_tiles
from pipeline.inference.region.counters import RegionCounters
from pipeline.inference.region.engine_setup import build_engine, build_transfer, device_of
from pipeline.inference.region.job import RegionJob, RegionRasters, RegionResult, raster_profiles
from pipeline.inference.tiling.regions import Region, split_region
from pipeline.inference.tiling.strips import read_strips
from pipeline.inference.transfer import DeviceStrip, FinishedRows, blank_rows
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import identity_of
from pipeline.mosaic import BLOCK, MosaicWriter, overview_count
from pipeline.scene import check_unchanged

log = logging.getLogger(__name__)

PixelProgress = Callable[[int], None]
"""Progress callback: called with the number of scene pixels finished since the last call; cancels by raising."""


def infer_region(
    job: RegionJob, region: Region, predictor: Predictor | ArrayFunction, progress: PixelProgress | None = None
) -> RegionResult:
    """Run a region and write its `probability-` and `mask-` rasters to the job's folder."""
    (result,) = infer_stack(job, [region], predictor, progress)
    return result


def infer_stack(
    job: RegionJob, stack: Sequence[Region], predictor: Predictor | ArrayFunction, progress: PixelProgress | None = None
) -> Generator[RegionResult]:
    """Run regions one below the other, and yield each result as soon as its rasters are complete.

    Raises:
        TransientError: also if the scene's file was replaced during the run.
    """
    _check_identity(job, predictor)
    device = device_of(predictor)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield from _infer(job, stack, predictor, progress)
    except ScenemillError:
        check_unchanged(job.scene)
        raise
    finally:
        trim_heap()


def _infer(
    job: RegionJob, stack: Sequence[Region], predictor: Predictor | ArrayFunction, progress: PixelProgress | None
) -> Generator[RegionResult]:
    """Run regions, split into halves if memory does not suffice for their strips."""
    try:
        run = _RegionRun(job, stack, predictor)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        columns = stack[0].core.width
        halves = [split_region(job.plan, region) for region in stack]
        if len(halves[0]) == 1:
            raise TransientError(
                f"no memory for strips that are one tile ({columns} px) wide; "
                "set a smaller tiling.tile_size, or run on a larger machine"
            ) from error
        log.warning("no memory for strips of %d columns: %s; going on with halves", columns, error)
    else:
        yield from _store(job, stack, run, progress)
        return

    # After the except clause, whose error holds the buffers of the failed run.
    for region, parts in zip(stack, halves, strict=True):
        yield _side_by_side(region, [one for half in parts for one in _infer(job, [half], predictor, progress)])


def _store(
    job: RegionJob, stack: Sequence[Region], run: _RegionRun, progress: PixelProgress | None
) -> Generator[RegionResult]:
    """Write the rows of a run."""
    with closing(run.stored_rows()) as finished:
        for position, pieces in groupby(finished, key=itemgetter(0)):
            region, attempt = stack[position], uuid4().hex[:8]
            with _mosaic_writer(job, region, attempt) as writer:
                for _, stored in pieces:
                    writer.write(stored)
                    if progress is not None:
                        progress(stored.shape[1] * stored.shape[2])
            # Before the result is yielded: rows of a file that was replaced must not be published.
            check_unchanged(job.scene)
            rasters = (RegionRasters(core=region.core, attempt=attempt),)
            yield run.counters[position].result(region, rasters)


def _side_by_side(region: Region, results: Sequence[RegionResult]) -> RegionResult:
    """The result of a region from those of its parts, left to right; tiles between two parts were run twice."""
    quicklooks = [result.quicklook for result in results]
    return RegionResult(
        region=region,
        rasters=tuple(raster for result in results for raster in result.rasters),
        tiles_run=sum(result.tiles_run for result in results),
        tiles_skipped=sum(result.tiles_skipped for result in results),
        valid_pixels=sum(result.valid_pixels for result in results),
        quicklook=replace(quicklooks[0], pixels=np.concatenate([quicklook.pixels for quicklook in quicklooks], axis=2)),
    )


def _mosaic_writer(job: RegionJob, region: Region, attempt: str) -> MosaicWriter:
    forms = raster_profiles(job, job.scene.grid.part(region.core))
    probability, mask = ((job.path(kind, region, attempt), form) for kind, form in forms.items())
    overviews = overview_count(job.scene.grid.shape, BLOCK)
    return MosaicWriter(probability, mask, card=job.card, threshold=job.threshold, overviews=overviews)


def _check_identity(job: RegionJob, predictor: Predictor | ArrayFunction) -> None:
    """All regions of a scene need the same model identity: another would leave seams."""
    found = identity_of(predictor)
    if found != job.identity:
        raise ModelError(
            f"the workers run the model in different ways, here as {found}, for this scene as {job.identity}; "
            "name inference.precision and inference.device, or use workers of one kind"
        )


class _RegionRun:
    """Computes the stored rows of a stack of regions, top to bottom."""

    def __init__(self, job: RegionJob, stack: Sequence[Region], predictor: Predictor | ArrayFunction) -> None:
        plan, first, last = job.plan, stack[0].core, stack[-1].core
        self._job = job
        self._rows, cols = plan_blend_weights(plan.rows, job.blend), plan_blend_weights(plan.cols, job.blend)
        self._span = slice(first.col_off, first.col_off + first.width)
        self._tile_rows = tiles_covering(self._rows, first.row_off, last.row_off + last.height)
        self._tile_cols = tiles_covering(cols, self._span.start, self._span.stop)
        self._wanted = None if job.area is None else self._wanted_in(job.area, stack, cols)

        # Tiles of a strip, and the buffers that hold it on the device.
        self._row = TileRow(
            lefts=tuple(plan.cols.starts[col] - plan.cols.margin for col in self._tile_cols),
            height=plan.rows.tile,
            width=plan.cols.tile,
        )
        # Buffers are allocated before the first strip, so that lack of memory shows at once.
        tallest = max(len(share.factor) for share in self._rows)
        self._transfer = build_transfer(job, device_of(predictor), self._row, (tallest, first.width))
        tiles = [len(self._tile_cols)] * len(self._tile_rows) if self._wanted is None else [*map(len, self._wanted)]
        self._engine = build_engine(job, predictor, self._row, self._transfer, tiles)
        self._blender = StripBlender(
            self._rows, cols, span=self._span, classes=len(job.card.classes), device=self._transfer.device
        )
        self.counters = [RegionCounters(job, region.core) for region in stack]

    def stored_rows(self) -> Generator[tuple[int, NDArray[np.generic]]]:
        """Yield the position of a region in the stack, and its next `(classes, rows, columns)` as stored.

        An array is valid until two more have been yielded.
        """
        for position, stored in self._arriving_rows():
            self.counters[position].count_stored(stored)
            yield position, stored

    def _arriving_rows(self) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """Rows on the host, in the order in which they were computed."""
        in_flight: deque[tuple[int, FinishedRows]] = deque()
        for each in self._finished_rows():
            in_flight.append(each)
            if len(in_flight) > self._transfer.rows_in_flight:
                yield _arrived(*in_flight.popleft())
        while in_flight:
            yield _arrived(*in_flight.popleft())

    def _finished_rows(self) -> Iterator[tuple[int, FinishedRows]]:
        """Read, predict, blend and quantise."""
        job = self._job
        strips = read_strips(
            job.scene, job.plan, (self._tile_rows, self._tile_cols), wanted=self._wanted, threads=job.threads
        )
        for predicted in self._engine.run(strips):
            batch = predicted.batch
            for position, probabilities in zip(batch.positions, predicted.tiles, strict=True):
                self._blender.add(self._tile_cols[position], probabilities)
                for counters in self.counters:
                    counters.count_tile(batch.strip.raw.row, self._tile_cols[position])
            if batch.ends_strip:
                yield from self._end_strip(batch.strip)

    def _wanted_in(
        self, area: AreaPixels, stack: Sequence[Region], cols: Sequence[BlendWeights]
    ) -> list[tuple[int, ...]]:
        first, last = stack[0].core, stack[-1].core
        whole = Window(first.col_off, first.row_off, first.width, last.row_off + last.height - first.row_off)
        shares = [self._rows[row] for row in self._tile_rows], [cols[col] for col in self._tile_cols]
        return wanted_tiles(area, whole, *shares)

    def _end_strip(self, strip: DeviceStrip) -> Iterator[tuple[int, FinishedRows]]:
        """Yield the finished rows of each core, as stored, and count pixels."""
        row, margin = strip.raw.row, self._job.plan.rows.margin
        share, top = self._rows[row], self._job.plan.rows.starts[row] - margin
        last, dtype = row == self._tile_rows[-1], self._job.mosaic.dtype
        # A strip without wanted tiles is not blended: its finished rows are nodata.
        mean = self._blender.end_strip(row, last=last) if strip.raw.tiles != () else None
        finished = self._blender.skip_strip(row, last=last) if mean is None else mean.shape[1]
        # Columns of the region within the strip, whose windows reach further.
        cols = slice(self._span.start - strip.raw.left, self._span.stop - strip.raw.left)
        for position, counters in enumerate(self.counters):
            counters.count_strip(strip.raw, top)

            # The part of the finished rows inside this core, counted from the first row of the strip's output.
            first = max(counters.core.row_off - share.start, 0)
            stop = min(counters.core.row_off + counters.core.height - share.start, finished)
            if first >= stop:
                continue
            if mean is None:
                shape = (len(self._job.card.classes), stop - first, cols.stop - cols.start)
                yield position, blank_rows(shape, dtype)
                continue
            # The same rows in the strip's input, which begins a margin above the output.
            rows = slice(margin + share.skip + first, margin + share.skip + stop)
            counters.count_valid(strip.raw, rows, cols)
            levels = to_levels(mean[:, first:stop], strip.validity(rows, cols), dtype)
            yield position, self._transfer.to_host(levels, self._engine.range_check.take())


def _arrived(position: int, rows: FinishedRows) -> tuple[int, NDArray[np.generic]]:
    stored, extremes = rows.wait()
    check_range(*extremes)
    return position, stored
