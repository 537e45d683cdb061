"""Cluster executor: the regions and output stages of a scene as tasks on a dask.distributed cluster.

Each region is one task of at least a second, and the number of running tasks is bounded. A loaded predictor pickles as
its path and hash, and each worker process loads it once. A lost worker costs its running region. The output stages need
no model and run on any worker. Client and workers share the results folder or a staging area.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.distribute import worker_tasks
from pipeline.distribute.client import Result, TaskQueue, translate_worker_errors
from pipeline.distribute.executor import (
    Outputs,
    OutputTask,
    ProgressCallback,
    check_cancelled,
    regions_progress,
    stage_progress,
)
from pipeline.distribute.plan import plan_cluster_regions
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.scheduler import RegionScheduler
from pipeline.distribute.spec import DistributeSpec
from pipeline.distribute.staging import staging_area
from pipeline.distribute.worker_tasks import TaskResult, call, dumps, fetch_files
from pipeline.inference import Region, RegionJob, RegionResult, choose_precision
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import LoadedModel, PrecisionCheck, identity_of
from pipeline.scene import Scene
from pipeline.storage import Exchange

if TYPE_CHECKING:
    from distributed import Client


class ClusterExecutor:
    """Runs the work of a scene on the cluster of a client."""

    def __init__(
        self, client: Client, spec: DistributeSpec | None = None, progress: ProgressCallback | None = None
    ) -> None:
        """`progress` is called with finished pixels, and every second while tasks are waited for."""
        self._client, self._spec, self._progress = client, spec or DistributeSpec(), progress
        self._staging: Exchange | None = None

    def identity(self, predictor: Predictor | ArrayFunction, scene: Scene) -> str | None:
        """See `Executor`; a worker may have another device than this process."""
        here = identity_of(predictor)
        if here is None or not isinstance(predictor, LoadedModel):
            return here
        known, key = _identity_cache(predictor), (self._client.id, here)
        if key not in known:
            known[key] = self._ask_worker("loading the model", scene, identity_of, predictor)
        return known[key]

    @contextmanager
    def workspace(self, work: Path, preload: Callable[[], object]) -> Iterator[None]:
        """See `Executor`; the staging area of the scene is empty before and after."""
        with staging_area(self._spec, work) as self._staging:
            yield

    def reserve(self, predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
        """See `Executor`."""
        return nullcontext()

    def check_precision(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> PrecisionCheck:
        """See `Executor`."""
        check_cancelled(self._progress, job.scene)
        arguments = job.scene, job.plan, job.card, predictor
        if not isinstance(predictor, LoadedModel):
            return choose_precision(*arguments)
        context = f"{job.scene.location}: the precision check"
        return self._ask_worker(context, job.scene, worker_tasks.check_precision, *arguments)

    def plan_regions(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> tuple[Region, ...]:
        """See `Executor`."""
        return plan_cluster_regions(job, self._spec, self._client)

    def run_regions(
        self, job: RegionJob, regions: Sequence[Region], predictor: Predictor | ArrayFunction
    ) -> Generator[RegionResult]:
        """See `Executor`."""
        progress = regions_progress(self._progress, job.scene, regions)
        return RegionScheduler(self._client, self._staging, progress).run(job, regions, predictor)

    def run_outputs(self, task: OutputTask[Outputs], result: Path) -> Outputs:
        """See `Executor`; on any worker, so that they do not block inference."""
        work, area, files = result.parent, self._staging, task.input_files()
        if area is not None and not files:
            return task.run(result, self._progress)

        # Upload what the worker needs, run there, then fetch the outputs and record them here.
        content = dumps(task, result, area, {} if area is None else _upload_missing(files, work, area))
        tasks: TaskQueue[TaskResult[Outputs]] = TaskQueue(self._client, progress=self._waiting("polygons", task.scene))
        with translate_worker_errors(f"{task.scene.location}: mosaic or polygons"):
            returned = tasks.run(worker_tasks.run_outputs, content, name=f"outputs-{task.scene.id}", device=False)
        if area is not None:
            fetch_files(returned.files, area, result)
            task.record(result, returned.value)
        return returned.value

    def _ask_worker(self, context: str, scene: Scene, function: Callable[..., Result], *args: object) -> Result:
        """Call a function in a worker that reserves its device; `context` begins the messages of errors."""
        tasks: TaskQueue[Result] = TaskQueue(self._client, progress=self._waiting("infer", scene))
        with translate_worker_errors(context):
            return tasks.run(call, dumps(function, *args), name=function.__name__, device=True)

    def _waiting(self, stage: str, scene: Scene) -> Callable[[int], None] | None:
        return stage_progress(self._progress, stage, scene.grid)


def _identity_cache(predictor: LoadedModel) -> dict[tuple[str, str], str | None]:
    """Cache of model identities reported by workers; asking costs a device slot, so it is done once per model."""
    first = predictor.members[0]
    return first.known if isinstance(first, RemotePredictor) else {}


def _upload_missing(files: Sequence[Path], work: Path, area: Exchange) -> dict[str, int]:
    """Upload the files of a work folder that are not in the staging area yet.

    Returns:
        name in the work folder -> bytes, for all of them.
    """
    named = {path.relative_to(work).as_posix(): path for path in files}
    for name, path in named.items():
        if not area.exists(name):
            area.upload(path, name)
    return {name: path.stat().st_size for name, path in named.items()}
