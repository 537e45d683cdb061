"""Run the work of a scene in this process, or as tasks on a dask.distributed cluster.

On a cluster each region is one task of at least a second, and the number of running tasks is bounded. A loaded
predictor pickles as its path and hash, and each worker process loads it once. A lost worker costs its running region.
The output stages need no model and run on any worker. Client and workers share a folder or a staging area.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.distribute import worker_tasks
from pipeline.distribute.client import TaskQueue, connect, translate_worker_errors
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.scheduler import run_on_cluster
from pipeline.distribute.spec import DistributeSpec
from pipeline.distribute.worker_tasks import call, dumps, fetch_files, run_outputs
from pipeline.inference import Region, RegionJob, RegionResult, TilePlan, choose_precision
from pipeline.inference.region import PixelProgress, infer_stack
from pipeline.inference.tiling import group_adjacent
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import LoadedModel, PrecisionCheck, identity_of
from pipeline.scene import Scene
from pipeline.storage import Exchange, open_exchange

if TYPE_CHECKING:
    from distributed import Client

Answer = TypeVar("Answer")


@contextmanager
def cluster(spec: DistributeSpec) -> Iterator[Client | None]:
    """Yield a client of the settings' cluster and close it afterwards; None where the work is done in this process.

    Raises:
        SettingsError: the address is malformed, or a worker has another version.
        TransientError: no scheduler answers, or no worker joins within 10 s.
    """
    if spec.scheduler is None:
        yield None
        return
    client = connect(spec.scheduler)
    try:
        yield client
    finally:
        client.close()


def resolve_exchange(spec: DistributeSpec) -> Exchange | None:
    """The staging area of a run, if it has one; raises SettingsError, or TransientError if it is missing."""
    return None if spec.exchange is None else open_exchange(spec.exchange)


@contextmanager
def staging_area(spec: DistributeSpec, work: Path, client: Client | None) -> Iterator[Exchange | None]:
    """Yield the part of the staging area that belongs to a work folder, empty before and after; None: there is none.

    Raises:
        SettingsError: the address is malformed.
        TransientError: the staging area is missing.
    """
    area = None if client is None else resolve_exchange(spec)
    if area is None:
        yield None
        return
    owner = sha256(f"{gethostname()} {work.absolute()}".encode()).hexdigest()[:8]
    area = area.child(f"{work.name.strip('.')}-{owner}")
    area.delete()
    try:
        yield area
    finally:
        area.delete()


def predictor_identity(
    predictor: Predictor | ArrayFunction, client: Client | None, progress: PixelProgress | None = None
) -> str | None:
    """Identity of the model where regions run: a worker may have another device than this process."""
    here = identity_of(predictor)
    if client is None or here is None or not isinstance(predictor, LoadedModel):
        return here
    known, key = _identity_cache(predictor), (client.id, here)
    if key not in known:
        known[key] = _run_on_device(client, "loading the model", progress, identity_of, predictor)
    return known[key]


def _identity_cache(predictor: LoadedModel) -> dict[tuple[str, str], str | None]:
    """Cache of model identities reported by workers; asking costs a device slot, so it is done once per model."""
    first = predictor.members[0]
    return first.known if isinstance(first, RemotePredictor) else {}


def check_precision(
    scene: Scene,
    plan: TilePlan,
    card: ModelCard,
    predictor: Predictor | ArrayFunction,
    client: Client | None,
    progress: PixelProgress | None = None,
) -> PrecisionCheck:
    """`choose_precision`, on a cluster in a worker, whose device is like that of all workers."""
    if client is None or not isinstance(predictor, LoadedModel):
        return choose_precision(scene, plan, card, predictor)
    return _run_on_device(
        client,
        f"{scene.location}: the precision check",
        progress,
        worker_tasks.check_precision,
        scene,
        plan,
        card,
        predictor,
    )


def run_regions(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    *,
    client: Client | None = None,
    progress: PixelProgress | None = None,
) -> Generator[RegionResult]:
    """Run regions in this process or on a cluster; yield each result when its rasters are in the job's folder.

    Args:
        job: what the regions have in common.
        regions: the regions to run.
        predictor: the model.
        client: of the cluster; None: this process.
        progress: called with the finished pixels, on a cluster also with 0 every second; cancels by raising.

    Raises:
        TransientError: a worker was lost repeatedly, or the scheduler.
        ScenemillError: raised by a region.
    """
    if client is None:
        return (result for stack in group_adjacent(regions) for result in infer_stack(job, stack, predictor, progress))
    return run_on_cluster(job, regions, predictor, client, progress)


def run_finish(
    function: Callable[[Any, Any, Path], Answer],
    inferred: Any,
    spec: object,
    folder: Path,
    *,
    client: Client,
    extra_files: Sequence[Path] = (),
    progress: PixelProgress | None = None,
) -> Answer:
    """Call `function(inferred, spec, folder)` on any worker, and leave its files in the folder.

    Args:
        function: makes outputs from regions in a folder; needs no model.
        inferred: results of the regions: `inferred.job`, and `inferred.results`.
        spec: settings of the function.
        folder: of the outputs, on this machine.
        client: of the cluster.
        extra_files: files of the work folder that the function needs, in addition to the regions' rasters.
        progress: called with 0 every second; cancels by raising.

    Raises:
        TransientError: workers were lost repeatedly, or the scheduler.
        ScenemillError: raised by the function.
    """
    job: RegionJob = inferred.job
    names = {} if job.exchange is None else _upload_missing(job, inferred.results, extra_files)
    content = dumps(function, inferred, spec, folder.absolute(), names)
    context, name = f"{job.scene.location}: mosaic or polygons", f"finish-{job.scene.id}"
    returned = _run_task(client, context, run_outputs, content, name=name, progress=progress)
    if job.exchange is not None:
        fetch_files(returned.files, job.exchange, folder)
    return cast("Answer", returned.answer)


def _upload_missing(job: RegionJob, results: Sequence[RegionResult], extra_files: Sequence[Path]) -> dict[str, int]:
    """Upload the regions' rasters and the extra files that are not in the staging area yet.

    Returns:
        name in the work folder -> bytes, for all of them.
    """
    assert job.exchange is not None
    attempts = {raster.attempt for result in results for raster in result.rasters}
    rasters = [path for path in sorted(job.folder.iterdir()) if _attempt_of(path) in attempts]
    files = {path.relative_to(job.folder.parent).as_posix(): path for path in (*rasters, *extra_files)}
    for name, path in files.items():
        if not job.exchange.exists(name):
            job.exchange.upload(path, name)
    return {name: path.stat().st_size for name, path in files.items()}


def _attempt_of(path: Path) -> str:
    """The attempt in a file name that `RegionJob.path` made.

    >>> _attempt_of(Path("probability-00001-1a2b3c4d.2.tif"))
    '1a2b3c4d'
    """
    return path.name.partition(".")[0].rpartition("-")[2]


def _run_on_device(
    client: Client, context: str, progress: PixelProgress | None, function: Callable[..., Answer], *args: object
) -> Answer:
    """Call a function in a worker that reserves its device; `context` begins the messages of errors."""
    answer: Answer = _run_task(
        client, context, call, dumps(function, *args), name=function.__name__, device=True, progress=progress
    )
    return answer


def _run_task(
    client: Client,
    context: str,
    task: Callable[[bytes], Answer],
    content: bytes,
    *,
    name: str,
    device: bool = False,
    progress: PixelProgress | None = None,
) -> Answer:
    """Run one task before all that wait, and return its result."""
    tasks: TaskQueue[Answer] = TaskQueue(client, progress=progress)
    try:
        with translate_worker_errors(context):
            tasks.submit(task, content, name=name, device=device, urgent=True)
            return tasks.next().result()
    finally:
        tasks.cancel()
