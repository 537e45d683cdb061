"""Run regions on a cluster with bounded concurrency, and isolate the ones that crash workers.

dask blames every task of a worker that dies. So a region that lost its workers is only a suspect: when the others are
done, the suspects run one by one, and the one that crashes a worker again is the cause.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.distribute.client import TaskQueue, translate_worker_errors, workers_of
from pipeline.distribute.worker_tasks import TaskResult, dumps, fetch_files, restore_quicklook, run_region
from pipeline.inference import Region, RegionJob, RegionResult
from pipeline.inference.region import PixelProgress
from pipeline.model import ArrayFunction, Predictor

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

MAX_INLINE_BYTES = 2**18
"""Maximum size of pickled arguments that are sent with every region: a job, and a model as path and hash."""


def run_on_cluster(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    client: Client,
    progress: PixelProgress | None,
) -> Generator[RegionResult]:
    """Run regions and yield results as they finish; see `run_regions`."""
    suspects: list[Region] = []
    yield from _run_bounded(
        job, regions, predictor, client, progress, max_running=2 * workers_of(client), suspects=suspects
    )
    if suspects:
        log.warning("%s: %d region(s) lost their workers; each is tried again alone", job.scene.location, len(suspects))
        yield from _run_bounded(job, suspects, predictor, client, progress, max_running=1)


def _run_bounded(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    client: Client,
    progress: PixelProgress | None,
    *,
    max_running: int,
    suspects: list[Region] | None = None,
) -> Generator[RegionResult]:
    """Run regions, at most `max_running` at once; add those that lose their workers to `suspects`, if that is given."""
    from distributed.scheduler import KilledWorker

    tasks: TaskQueue[TaskResult[RegionResult]] = TaskQueue(client, progress=progress)
    with translate_worker_errors(f"{job.scene.location}: the scene"):
        content = _submit_shared(dumps(job, predictor), client)
    waiting, running = iter(regions), dict["Future[TaskResult[RegionResult]]", Region]()

    def submit(count: int) -> None:
        for region in islice(waiting, count):
            name = f"region-{job.scene.id}-{region.index}"
            running[tasks.submit(run_region, content, region, name=name, device=True)] = region

    try:
        with translate_worker_errors(f"{job.scene.location}: the first region"):
            submit(max_running)
        while running:
            future = tasks.next()
            region = running.pop(future)
            with translate_worker_errors(f"{job.scene.location}: the region of {_rows_and_columns(region)}"):
                try:
                    returned = future.result()
                except KilledWorker:
                    if suspects is None:
                        raise
                    suspects.append(region)
                    returned = None
                submit(1)
            if returned is not None:
                yield _receive(job, returned, progress)
    finally:
        tasks.cancel()


def _submit_shared(content: bytes, client: Client) -> bytes | Future[bytes]:
    """The arguments of all regions. Small ones are sent with each: dask prefers the worker that holds shared data.

    Large ones are a task, since scattered data would be lost with the worker that holds it.
    """
    return content if len(content) <= MAX_INLINE_BYTES else client.submit(bytes, content, pure=False)


def _receive(job: RegionJob, returned: TaskResult[RegionResult], progress: PixelProgress | None) -> RegionResult:
    """Download a region's rasters into the job's folder, and return its result with its quicklook."""
    if job.exchange is not None:
        fetch_files(returned.files, job.exchange, job.folder.parent)
    if progress is not None:
        progress(returned.answer.region.pixels)
    return restore_quicklook(returned.answer, job.folder)


def _rows_and_columns(region: Region) -> str:
    core = region.core
    last = core.row_off + core.height - 1, core.col_off + core.width - 1
    return f"rows {core.row_off} to {last[0]}, columns {core.col_off} to {last[1]}"
