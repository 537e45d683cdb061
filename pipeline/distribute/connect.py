"""Regions as tasks: one after another here, or on any dask.distributed cluster by address.

On a cluster each region is one task of at least a second; work in flight is bounded; a loaded predictor pickles as its
path and hash, and each worker process loads it once. A lost worker costs the region it had in hand. What needs no
model, mosaic and polygons, is a task for any worker. Client and workers share a folder or an exchange place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.distribute.client import TaskQueue, connect, translate_worker_errors
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.scheduler import run_on_cluster
from pipeline.distribute.spec import DistributeSpec
from pipeline.distribute.worker_tasks import call, fetch_all, finish, packed, prove
from pipeline.inference import Region, RegionJob, RegionResult, TilePlan, choose_precision
from pipeline.inference.region import Watch, infer_stack
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
    """Yield a client of the settings' cluster and close it afterwards; None where the work is done here.

    Raises:
        SettingsError: the address is malformed, or a worker has another version.
        TransientError: nobody answers, or no worker joins within 10 s.
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
    """The exchange place of a run, if it has one; raises SettingsError, or TransientError if the place is missing."""
    return None if spec.exchange is None else open_exchange(spec.exchange)


@contextmanager
def staging_area(spec: DistributeSpec, work: Path, client: Client | None) -> Iterator[Exchange | None]:
    """Yield the part of the exchange place that belongs to a work folder, empty before and after; None: there is none.

    Raises:
        SettingsError: no address that can be one.
        TransientError: it is not there.
    """
    place = None if client is None else resolve_exchange(spec)
    if place is None:
        yield None
        return
    owner = sha256(f"{gethostname()} {work.absolute()}".encode()).hexdigest()[:8]
    place = place.child(f"{work.name.strip('.')}-{owner}")
    place.delete()
    try:
        yield place
    finally:
        place.delete()


def predictor_identity(
    predictor: Predictor | ArrayFunction, client: Client | None, watch: Watch | None = None
) -> str | None:
    """What decides the results where regions run: a worker may have another device than this process."""
    here = identity_of(predictor)
    if client is None or here is None or not isinstance(predictor, LoadedModel):
        return here
    known, question = _known_of(predictor), (client.id, here)
    if question not in known:
        known[question] = _ask(client, "loading the model", watch, identity_of, predictor)
    return known[question]


def _known_of(predictor: LoadedModel) -> dict[tuple[str, str], str | None]:
    """Identities that workers have told: each scene asks, and who answers must have a free device."""
    first = predictor.members[0]
    return first.known if isinstance(first, RemotePredictor) else {}


def check_precision(
    scene: Scene,
    plan: TilePlan,
    card: ModelCard,
    predictor: Predictor | ArrayFunction,
    client: Client | None,
    watch: Watch | None = None,
) -> PrecisionCheck:
    """See `choose_precision`; where regions run on a cluster, a worker tries it, on a device like that of all."""
    if client is None or not isinstance(predictor, LoadedModel):
        return choose_precision(scene, plan, card, predictor)
    return _ask(client, f"{scene.location}: the trial", watch, prove, scene, plan, card, predictor)


def run_regions(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    *,
    client: Client | None = None,
    watch: Watch | None = None,
) -> Generator[RegionResult]:
    """Run every region, here or on the client's cluster, and yield results as they finish, their rasters in the folder.

    Args:
        job: what they have in common.
        regions: which.
        predictor: the model.
        client: of the cluster; None runs them here.
        watch: told the pixels that are done, on a cluster also of none now and then; what it raises ends the work.

    Raises:
        TransientError: a worker was lost repeatedly, or the scheduler.
        ScenemillError: whatever a region raised.
    """
    if client is None:
        return (result for stack in group_adjacent(regions) for result in infer_stack(job, stack, predictor, watch))
    return run_on_cluster(job, regions, predictor, client, watch)


def run_finish(
    function: Callable[[Any, Any, Path], Answer],
    inferred: Any,
    spec: object,
    folder: Path,
    *,
    client: Client,
    beside: Sequence[Path] = (),
    watch: Watch | None = None,
) -> Answer:
    """Call `function(inferred, spec, folder)` on any worker, device or not; its files are in the folder then.

    Args:
        function: makes outputs of regions in a folder; needs no model.
        inferred: what regions left: `inferred.job`, and `inferred.results`.
        spec: settings for it.
        folder: that of the outputs, here.
        client: of the cluster.
        beside: files of the work folder that the function needs, in addition to the regions' rasters.
        watch: called with 0 now and then; what it raises ends the work.

    Raises:
        TransientError: workers were lost repeatedly, or the scheduler.
        ScenemillError: whatever the function raised.
    """
    job: RegionJob = inferred.job
    names = {} if job.exchange is None else _offered(job, inferred.results, beside)
    given = packed(function, inferred, spec, folder.absolute(), names)
    what, name = f"{job.scene.location}: mosaic or polygons", f"finish-{job.scene.id}"
    sent = _one(client, what, finish, given, name=name, watch=watch)
    if job.exchange is not None:
        fetch_all(sent.files, job.exchange, folder)
    return cast("Answer", sent.answer)


def _offered(job: RegionJob, results: Sequence[RegionResult], beside: Sequence[Path]) -> dict[str, int]:
    """Regions' rasters and files beside, by their place in the work folder, with their bytes.

    All of them are in the exchange place then, whoever made them.
    """
    assert job.exchange is not None
    attempts = {raster.attempt for result in results for raster in result.rasters}
    rasters = [path for path in sorted(job.folder.iterdir()) if _attempt_of(path) in attempts]
    files = {path.relative_to(job.folder.parent).as_posix(): path for path in (*rasters, *beside)}
    for name, path in files.items():
        if not job.exchange.exists(name):
            job.exchange.upload(path, name)
    return {name: path.stat().st_size for name, path in files.items()}


def _attempt_of(path: Path) -> str:
    """The last part of what `RegionJob.path` made, before the suffixes of levels.

    >>> _attempt_of(Path("probability-00001-1a2b3c4d.2.tif"))
    '1a2b3c4d'
    """
    return path.name.partition(".")[0].rpartition("-")[2]


def _ask(client: Client, what: str, watch: Watch | None, function: Callable[..., Answer], *given: object) -> Answer:
    """What a function returns in a worker that holds its device meanwhile; `what` names it in messages."""
    answer: Answer = _one(
        client, what, call, packed(function, *given), name=function.__name__, device=True, watch=watch
    )
    return answer


def _one(
    client: Client,
    what: str,
    task: Callable[[bytes], Answer],
    given: bytes,
    *,
    name: str,
    device: bool = False,
    watch: Watch | None = None,
) -> Answer:
    """What one task returns, before all that waits."""
    tasks: TaskQueue[Answer] = TaskQueue(client, watch=watch)
    try:
        with translate_worker_errors(what):
            tasks.submit(task, given, name=name, device=device, urgent=True)
            return tasks.next().result()
    finally:
        tasks.cancel()
