"""Regions on a cluster: a bounded number in hand, and those that kill their workers told from those beside them.

dask blames every task of a worker that dies. So a region that has lost its workers is only a suspect: when the others
are done, suspects run one by one, and what kills again is what killed.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.distribute.client import TaskQueue, translate_worker_errors, workers_of
from pipeline.distribute.worker_tasks import Sent, fetch_all, infer, packed, take_up
from pipeline.inference import Region, RegionJob, RegionResult
from pipeline.inference.region import Watch
from pipeline.model import ArrayFunction, Predictor

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

CARRIED = 2**18
"""Bytes that travel with every region: a job, and a model that is a path and a hash."""


def run_on_cluster(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    client: Client,
    watch: Watch | None,
) -> Generator[RegionResult]:
    """Run regions and yield results as they finish; see `pipeline.distribute.connect.run_regions`."""
    suspects: list[Region] = []
    yield from _side_by_side(job, regions, predictor, client, watch, most=2 * workers_of(client), suspects=suspects)
    if suspects:
        log.warning("%s: %d region(s) lost their workers; each is tried again alone", job.scene.location, len(suspects))
        yield from _side_by_side(job, suspects, predictor, client, watch, most=1)


def _side_by_side(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    client: Client,
    watch: Watch | None,
    *,
    most: int,
    suspects: list[Region] | None = None,
) -> Generator[RegionResult]:
    """Run regions, at most so many in hand. One that loses its workers joins the suspects: it may not be its fault."""
    from distributed.scheduler import KilledWorker

    tasks: TaskQueue[Sent[RegionResult]] = TaskQueue(client, watch=watch)
    with translate_worker_errors(f"{job.scene.location}: the scene"):
        shared = _shared(packed(job, predictor), client)
    waiting, running = iter(regions), dict["Future[Sent[RegionResult]]", Region]()

    def submit(count: int) -> None:
        for region in islice(waiting, count):
            name = f"region-{job.scene.id}-{region.index}"
            running[tasks.submit(infer, shared, region, name=name, device=True)] = region

    try:
        with translate_worker_errors(f"{job.scene.location}: the first region"):
            submit(most)
        while running:
            future = tasks.next()
            region = running.pop(future)
            with translate_worker_errors(f"{job.scene.location}: the region of {_place(region)}"):
                try:
                    sent = future.result()
                except KilledWorker:
                    if suspects is None:
                        raise
                    suspects.append(region)
                    sent = None
                submit(1)
            if sent is not None:
                yield _arrived(job, sent, watch)
    finally:
        tasks.cancel()


def _shared(given: bytes, client: Client) -> bytes | Future[bytes]:
    """What all regions need. If small, it travels with each: dask would give every task to who holds what it needs.

    Else it is a task of its own, rather than scattered data, which would be lost with the worker that holds it.
    """
    return given if len(given) <= CARRIED else client.submit(bytes, given, pure=False)


def _arrived(job: RegionJob, sent: Sent[RegionResult], watch: Watch | None) -> RegionResult:
    """A region's result, with its rasters in the job's folder."""
    if job.exchange is not None:
        fetch_all(sent.files, job.exchange, job.folder.parent)
    if watch is not None:
        watch(sent.answer.region.pixels)
    return take_up(sent.answer, job.folder)


def _place(region: Region) -> str:
    core = region.core
    last = core.row_off + core.height - 1, core.col_off + core.width - 1
    return f"rows {core.row_off} to {last[0]}, columns {core.col_off} to {last[1]}"
