"""Regions as tasks: one after another here, or on any dask.distributed cluster by address.

On a cluster each region is one task of at least a second; work in flight is bounded; a loaded
predictor pickles as its path, and each worker process loads it once. A lost worker costs the region it
had in hand. Workers and client must see one file system under the output folder and the checkpoint.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from pipeline.card import ModelCard
from pipeline.errors import SettingsError, WorldError
from pipeline.precision import choose_precision
from pipeline.predictor import ArrayFunction, Predictor, Prepared, Proof, identity_of
from pipeline.region import Watch, infer_region
from pipeline.region_job import RegionJob, RegionResult
from pipeline.scene import Scene
from pipeline.tiling import Region, TilePlan

if TYPE_CHECKING:
    from distributed import Client, Future

Answer = TypeVar("Answer")

PATIENCE_S = 10
"""How long a scheduler may take to answer, and a worker to join it."""
DESERTED_S = 60
"""How long a cluster may be without any worker while regions wait."""


@dataclass(frozen=True, kw_only=True)
class DistributeSpec:
    """Where the regions of a scene run; changes the time taken, never the result."""

    scheduler: str | None = None
    """Address of a dask scheduler, e.g. `tcp://10.0.0.5:8786`; None runs in this process."""
    regions: int = 0
    """Regions a scene is cut into; 0 takes one here, and two per worker on a scheduler."""

    def __post_init__(self) -> None:
        if self.regions < 0:
            raise SettingsError(f"regions must be at least 0, not {self.regions}")


def run_regions(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    *,
    client: Client | None = None,
    watch: Watch | None = None,
) -> Iterator[RegionResult]:
    """Run every region, here or on the client's cluster, and yield results as they finish.

    Raises:
        WorldError: a worker was lost repeatedly.
        ScenemillError: whatever a region raised.
    """
    if client is None:
        return (infer_region(job, region, predictor, watch) for region in regions)
    return _run_on_cluster(job, regions, predictor, client, watch)


@contextmanager
def cluster(spec: DistributeSpec) -> Iterator[Client | None]:
    """Yield a client of the settings' cluster and close it afterwards; None where regions run here.

    Raises:
        SettingsError: the address is malformed.
        WorldError: nobody answers, or no worker joins within 10 s.
    """
    if spec.scheduler is None:
        yield None
        return
    client = connect(spec.scheduler)
    try:
        yield client
    finally:
        client.close()


def connect(scheduler: str) -> Client:
    """Connect to a scheduler that has at least one worker; see `cluster` for what is raised."""
    from distributed import Client

    _knock(scheduler)
    try:
        client = Client(scheduler, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise _nobody(scheduler, error) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError as error:
        client.close()
        raise _nobody(scheduler, "it has no worker") from error
    return client


def _knock(scheduler: str) -> None:
    """Find out at once whether anybody listens: a dask client tries for its whole timeout, and hangs when dropped."""
    from distributed.comm.addressing import get_address_host_port

    try:
        host, port = get_address_host_port(scheduler, strict=True)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"distribute.scheduler must be an address like tcp://10.0.0.5:8786, not {scheduler!r}: {error}"
        ) from error
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        raise _nobody(scheduler, error) from error


def _nobody(scheduler: str, reason: object) -> WorldError:
    return WorldError(f"no dask scheduler with a worker at {scheduler}: {reason}; start them or correct --scheduler")


def predictor_identity(predictor: Predictor | ArrayFunction, client: Client | None) -> str | None:
    """What decides the results where regions run: a worker may have another device than this process."""
    if client is None or identity_of(predictor) is None:
        return identity_of(predictor)
    return _ask(client, "loading the model", identity_of, predictor)


def prove_precision(
    scene: Scene, plan: TilePlan, card: ModelCard, predictor: Predictor | ArrayFunction, client: Client | None
) -> Proof:
    """See `choose_precision`; where regions run on a cluster, a worker tries it, on a device like that of all."""
    if client is None or not isinstance(predictor, Prepared):
        return choose_precision(scene, plan, card, predictor)
    return _ask(client, f"{scene.location}: the trial", choose_precision, scene, plan, card, predictor)


def _ask(client: Client, what: str, function: Callable[..., Answer], *given: object) -> Answer:
    """What a function returns in a worker that holds its device meanwhile; `what` names it in messages."""
    from distributed.protocol.pickle import dumps

    finished: SimpleQueue[Future[Answer]] = SimpleQueue()
    future = client.submit(_call, dumps((function, given)), pure=False, resources=_device_resource(client))
    future.add_done_callback(finished.put)
    with _world_faults(what):
        return _next(finished, client).result()


def region_count(spec: DistributeSpec, client: Client | None) -> int:
    """How many regions a scene is cut into."""
    if spec.regions:
        return spec.regions
    return 1 if client is None else 2 * _workers(client)


def _workers(client: Client) -> int:
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def _run_on_cluster(
    job: RegionJob,
    regions: Sequence[Region],
    predictor: Predictor | ArrayFunction,
    client: Client,
    watch: Watch | None,
) -> Iterator[RegionResult]:
    from distributed.protocol.pickle import dumps

    resources = _device_resource(client)
    # A task rather than scattered data, which would be lost with the worker that holds it.
    shared = client.submit(bytes, dumps((job, predictor)), pure=False)
    waiting = iter(regions)
    running: set[Future[RegionResult]] = set()
    finished: SimpleQueue[Future[RegionResult]] = SimpleQueue()

    def submit(count: int) -> None:
        for region in islice(waiting, count):
            key = f"region-{job.scene.id}-{region.index}-{uuid4().hex[:8]}"
            future = client.submit(_infer_shared, shared, region, pure=False, resources=resources, key=key)
            running.add(future)
            future.add_done_callback(finished.put)

    try:
        with _world_faults(f"{job.scene.location}: a region"):
            submit(2 * _workers(client))
            while running:
                future = _next(finished, client)
                running.remove(future)
                result = future.result()
                if watch is not None:
                    watch(int(result.region.core.width * result.region.core.height))
                submit(1)
                yield result
    finally:
        client.cancel([*running])


@contextmanager
def _world_faults(what: str) -> Iterator[None]:
    """Say in our words what dask says when workers die."""
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise WorldError(f"{what} killed its workers repeatedly: {error}; look at their memory") from error
    except CancelledError as error:
        raise WorldError(f"{what} was given up by the cluster: {error}; run again") from error


def _next(finished: SimpleQueue[Future[Answer]], client: Client) -> Future[Answer]:
    """Wait for a future to finish, however long, as long as somebody may be at it."""
    deserted_s = 0
    while True:
        with suppress(Empty):
            return finished.get(timeout=PATIENCE_S)
        deserted_s = 0 if client.scheduler_info(n_workers=-1)["workers"] else deserted_s + PATIENCE_S
        if deserted_s >= DESERTED_S:
            raise WorldError(f"the cluster has had no worker for {deserted_s} s; start workers and run again")


def _call(task: bytes) -> object:
    """Call a function in a worker; what it is given may be loaded only there."""
    from distributed.protocol.pickle import loads

    function, given = loads(task)
    return function(*given)


def _infer_shared(shared: bytes, region: Region) -> RegionResult:
    """Unpickle here, in the worker's own thread: loading a network takes a while, and its errors are a task's."""
    from distributed.protocol.pickle import loads

    job, predictor = loads(shared)
    return infer_region(job, region, predictor)


def _device_resource(client: Client) -> dict[str, int] | None:
    """`{"device": 1}` when workers declare such a resource, so that a device runs one region at a time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"device": 1} if any("device" in worker["resources"] for worker in workers) else None
