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
from pipeline.storage import Exchange

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

MAX_INLINE_BYTES = 2**18
"""Maximum size of pickled arguments that are sent with every region: a job, and a model as path and hash."""


class RegionScheduler:
    """Runs the regions of a scene on a cluster."""

    def __init__(self, client: Client, staging: Exchange | None, progress: PixelProgress | None) -> None:
        """Start with no task.

        Args:
            client: of the cluster.
            staging: staging area of the scene; None: workers see the job's folder.
            progress: called with finished pixels, and with 0 every second; cancels by raising.
        """
        self._client, self._staging, self._progress = client, staging, progress

    def run(
        self, job: RegionJob, regions: Sequence[Region], predictor: Predictor | ArrayFunction
    ) -> Generator[RegionResult]:
        """Run regions and yield results as they finish, with their rasters in the job's folder."""
        suspects: list[Region] = []
        scene = job.scene.location
        with translate_worker_errors(f"{scene}: the scene"):
            content = self._submit_shared(dumps(job, predictor, self._staging))
        # Two regions per worker: the next one waits at the worker while the first runs.
        yield from self._run_bounded(job, regions, content, 2 * workers_of(self._client), suspects)

        # Dask blames every task of a worker that died; run alone, only the region at fault kills another.
        if suspects:
            log.warning("%s: %d region(s) lost their workers; each is tried again alone", scene, len(suspects))
            with translate_worker_errors(f"{scene}: the scene"):
                content = self._submit_shared(dumps(job, predictor, self._staging))
            yield from self._run_bounded(job, suspects, content, 1)

    def _run_bounded(
        self,
        job: RegionJob,
        regions: Sequence[Region],
        content: bytes | Future[bytes],
        max_running: int,
        suspects: list[Region] | None = None,
    ) -> Generator[RegionResult]:
        """Run regions, at most `max_running` at once; add those that lose their workers to `suspects`, if given."""
        from distributed.scheduler import KilledWorker

        tasks: TaskQueue[TaskResult[RegionResult]] = TaskQueue(self._client, progress=self._progress)
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
                        # The second pass runs one region at a time, so this one is at fault.
                        if suspects is None:
                            raise
                        suspects.append(region)
                        returned = None
                    # Before the download below, so that the freed worker has work.
                    submit(1)
                if returned is not None:
                    yield self._receive(job, returned)
        finally:
            tasks.cancel()

    def _submit_shared(self, content: bytes) -> bytes | Future[bytes]:
        """The arguments of all regions. Small ones are sent with each: dask prefers the worker that holds shared data.

        Large ones are a task, since scattered data would be lost with the worker that holds it.
        """
        return content if len(content) <= MAX_INLINE_BYTES else self._client.submit(bytes, content, pure=False)

    def _receive(self, job: RegionJob, returned: TaskResult[RegionResult]) -> RegionResult:
        """Download a region's rasters into the job's folder, and return its result with its quicklook."""
        if self._staging is not None:
            fetch_files(returned.files, self._staging, job.folder.parent)
        if self._progress is not None:
            self._progress(returned.value.region.pixels)
        return restore_quicklook(returned.value, job.folder)


def _rows_and_columns(region: Region) -> str:
    core = region.core
    last = core.row_off + core.height - 1, core.col_off + core.width - 1
    return f"rows {core.row_off} to {last[0]}, columns {core.col_off} to {last[1]}"
