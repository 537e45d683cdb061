"""The client's side of a cluster: reach it, hand out tasks, and wait for them without waiting for nobody.

What dask says when schedulers and workers die is said here in our words.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from pipeline.distribute.versions import check_code, facts_of_code
from pipeline.errors import SettingsError, TransientError

if TYPE_CHECKING:
    from distributed import Client, Future

Answer = TypeVar("Answer")

PATIENCE_S = 10
"""How long a scheduler may take to answer, and a worker to join it."""
NO_WORKERS_TIMEOUT_S = 60
"""How long a cluster may be without any worker while tasks wait."""
POLL_INTERVAL_S = 1
"""How often whoever waits is told so, and may call it off."""


def connect(scheduler: str) -> Client:
    """Connect to a scheduler that has at least one worker, all of them of our version.

    Raises:
        SettingsError: the address is malformed, or a worker has another version.
        TransientError: nobody answers, or no worker joins in time.
    """
    from distributed import Client

    _knock(scheduler)
    try:
        client = Client(scheduler, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise _nobody(scheduler, error) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
        check_workers(client)
    except TimeoutError as error:
        client.close()
        raise _nobody(scheduler, "it has no worker") from error
    except BaseException:
        client.close()
        raise
    return client


def check_workers(client: Client) -> None:
    """Raise SettingsError when a worker is of another version, or has none of ours."""
    for address, found in client.run(facts_of_code, on_error="return").items():
        if isinstance(found, BaseException):
            raise SettingsError(
                f"the worker {address} cannot run Scenemill: {type(found).__name__}: {found}; install the same version "
                "on all machines, and start the workers again"
            )
        check_code(facts_of_code(), found, where=address)


def workers_of(client: Client) -> int:
    """How many regions the cluster works on at once, at least 1."""
    workers = _workers(client)
    return max(1, sum("device" in worker["resources"] for worker in workers) or len(workers))


def threads_of(client: Client) -> int:
    """How many tasks the cluster works on at once, those that need no device among them, at least 1."""
    return max(1, sum(int(worker["nthreads"]) for worker in _workers(client)))


def device_resource(client: Client) -> dict[str, int] | None:
    """`{"device": 1}` when workers declare such a resource, so that a device runs one region at a time."""
    return {"device": 1} if any("device" in worker["resources"] for worker in _workers(client)) else None


def is_lost(client: Client) -> bool:
    """Whether the scheduler has gone and does not come back: no further task can be handed out."""
    return client.status in ("closing", "closed")


class TaskQueue(Generic[Answer]):
    """Tasks in hand on a cluster, and which of them ends next."""

    def __init__(self, client: Client, *, watch: Callable[[int], None] | None = None) -> None:
        """Hold no task yet.

        Args:
            client: of the cluster.
            watch: called with 0 now and then while tasks are waited for; what it raises ends the waiting.
        """
        self._client, self._watch = client, watch
        self._device: dict[str, int] | None = device_resource(client)
        self._running: set[Future[Answer]] = set()
        self._finished: SimpleQueue[Future[Answer]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._running)

    def submit(
        self, function: Callable[..., Answer], *given: object, name: str, device: bool, urgent: bool = False
    ) -> Future[Answer]:
        """Hand out a task.

        Args:
            function: what a worker calls.
            given: its arguments.
            name: shown in dask's pages.
            device: True: only where a device is free, if workers declare theirs.
            urgent: True: before all tasks that wait.
        """
        resources = self._device if device else None
        key, priority = f"{name}-{uuid4().hex[:8]}", int(urgent)
        future = self._client.submit(function, *given, key=key, pure=False, resources=resources, priority=priority)
        self._running.add(future)
        future.add_done_callback(self._finished.put)
        return future

    def next(self) -> Future[Answer]:
        """Wait for a task to end, however long, as long as somebody may be at it.

        Raises:
            TransientError: the cluster has had no worker for a while.
        """
        waited_s = deserted_s = 0
        while True:
            try:
                future = self._finished.get(timeout=POLL_INTERVAL_S)
            except Empty:
                waited_s += POLL_INTERVAL_S
            else:
                self._running.discard(future)
                return future
            if self._watch is not None:
                self._watch(0)
            if waited_s % PATIENCE_S == 0:
                deserted_s = 0 if _workers(self._client) else deserted_s + PATIENCE_S
            if deserted_s >= NO_WORKERS_TIMEOUT_S:
                raise TransientError(f"the cluster has had no worker for {deserted_s} s; start workers and run again")

    def cancel(self) -> None:
        """Give up what is in hand."""
        if self._running and self._client.status == "running":
            self._client.cancel([*self._running])


@contextmanager
def translate_worker_errors(what: str) -> Iterator[None]:
    """Say in our words what dask says when workers and schedulers die; `what` begins the sentence."""
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise TransientError(f"{what} killed its workers repeatedly: {error}; look at their memory") from error
    except FutureCancelledError as error:
        if error.reason == "scheduler-connection-lost":
            raise _lost(what, "the scheduler does not answer any more") from error
        raise TransientError(f"{what} was given up by the cluster: {error}; run again") from error
    except CancelledError as error:
        raise TransientError(f"{what} was given up by the cluster: {error}; run again") from error
    except (ClosedClientError, CommClosedError) as error:
        raise _lost(what, error) from error


def _lost(what: str, reason: object) -> TransientError:
    return TransientError(f"{what} was lost with its cluster: {reason}; start the scheduler and workers, and run again")


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


def _nobody(scheduler: str, reason: object) -> TransientError:
    return TransientError(
        f"no dask scheduler with a worker at {scheduler}: {reason}; start them or correct --scheduler"
    )


def _workers(client: Client) -> list[Any]:
    """What the scheduler knows of each worker; none while it has gone."""
    info = client.scheduler_info(n_workers=-1) if client.status == "running" else {}
    return [*info.get("workers", {}).values()]
