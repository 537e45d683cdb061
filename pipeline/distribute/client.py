"""Submit tasks to a dask cluster and wait for them, with a timeout when no workers remain.

dask's errors for lost schedulers and workers become `TransientError` here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from pipeline.distribute.versions import check_versions, code_versions
from pipeline.errors import SettingsError, TransientError

if TYPE_CHECKING:
    from distributed import Client, Future

Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 10
"""How long a scheduler may take to answer, and its first worker to join."""
NO_WORKERS_TIMEOUT_S = 60
"""How long a cluster may be without any worker while tasks wait."""
ENCRYPTED = ("tls://", "wss://")
"""Protocols of dask that encrypt, and ask both sides for a certificate."""
POLL_INTERVAL_S = 1
"""How often the progress callback is called while tasks are waited for; it may cancel them by raising."""


def connect(scheduler: str) -> Client:
    """Connect to a scheduler with at least one worker; all workers must have the client's version."""
    from distributed import Client

    _check_encryption(scheduler)
    _check_reachable(scheduler)
    try:
        client = Client(scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise _no_scheduler(scheduler, error) from error
    try:
        # Any failure from here on closes the client, whose threads would keep running.
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
        check_workers(client)
    except TimeoutError as error:
        client.close()
        raise _no_scheduler(scheduler, "it has no worker") from error
    except BaseException:
        client.close()
        raise
    return client


def check_workers(client: Client) -> None:
    """Raise SettingsError when a worker runs another version, or cannot import this package."""
    for address, found in client.run(code_versions, on_error="return").items():
        if isinstance(found, BaseException):
            raise SettingsError(
                f"the worker {address} cannot run Scenemill: {type(found).__name__}: {found}; install the same version "
                "on all machines, and start the workers again"
            )
        check_versions(code_versions(), found, where=address)


def workers_of(client: Client) -> int:
    """Regions that the cluster runs at the same time, at least 1."""
    workers = _workers(client)
    return max(1, sum("device" in worker["resources"] for worker in workers) or len(workers))


def threads_of(client: Client) -> int:
    """Tasks that the cluster runs at the same time, including those without a device, at least 1."""
    return max(1, sum(int(worker["nthreads"]) for worker in _workers(client)))


def device_resource(client: Client) -> dict[str, int] | None:
    """`{"device": 1}` when workers declare such a resource, so that a device runs one region at a time."""
    return {"device": 1} if any("device" in worker["resources"] for worker in _workers(client)) else None


def is_lost(client: Client) -> bool:
    """Whether the connection to the scheduler is closed for good: no further task can be submitted."""
    return client.status in ("closing", "closed")


class TaskQueue(Generic[Result]):
    """Running tasks of a cluster, in the order in which they end."""

    def __init__(self, client: Client, *, progress: Callable[[int], None] | None = None) -> None:
        """Start with no task; `progress` is called with 0 every second of waiting, and may cancel by raising."""
        self._client, self._progress = client, progress
        self._device: dict[str, int] | None = device_resource(client)
        self._running: set[Future[Result]] = set()
        self._finished: SimpleQueue[Future[Result]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._running)

    def submit(
        self, function: Callable[..., Result], *args: object, name: str, device: bool, urgent: bool = False
    ) -> Future[Result]:
        """Submit `function(*args)`.

        Args:
            function: called in a worker.
            args: its arguments.
            name: prefix of the task key on dask's dashboard.
            device: True: waits for a worker with a free device, if workers declare devices.
            urgent: True: runs before all tasks that wait.
        """
        resources = self._device if device else None
        key, priority = f"{name}-{uuid4().hex[:8]}", int(urgent)
        future = self._client.submit(function, *args, key=key, pure=False, resources=resources, priority=priority)
        self._running.add(future)
        future.add_done_callback(self._finished.put)
        return future

    def run(self, function: Callable[..., Result], *args: object, name: str, device: bool) -> Result:
        """Run one task before all that wait, and return its result."""
        try:
            self.submit(function, *args, name=name, device=device, urgent=True)
            return self.next().result()
        finally:
            self.cancel()

    def next(self) -> Future[Result]:
        """Wait for a task to end, without a limit while the cluster has workers."""
        waited_s = idle_s = 0
        while True:
            try:
                future = self._finished.get(timeout=POLL_INTERVAL_S)
            except Empty:
                waited_s += POLL_INTERVAL_S
            else:
                self._running.discard(future)
                return future

            # Still waiting: report, and now and then look whether the cluster has workers.
            if self._progress is not None:
                self._progress(0)
            if waited_s % CONNECT_TIMEOUT_S == 0:
                idle_s = 0 if _workers(self._client) else idle_s + CONNECT_TIMEOUT_S
            if idle_s >= NO_WORKERS_TIMEOUT_S:
                raise TransientError(f"the cluster has had no worker for {idle_s} s; start workers and run again")

    def cancel(self) -> None:
        """Cancel the running tasks."""
        if self._running and self._client.status == "running":
            self._client.cancel([*self._running])


@contextmanager
def translate_worker_errors(context: str) -> Iterator[None]:
    """Raise dask's errors for lost workers and schedulers as TransientError; `context` begins the message."""
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise TransientError(f"{context} killed its workers repeatedly: {error}; look at their memory") from error
    # Before its base class CancelledError, which has no reason.
    except FutureCancelledError as error:
        if error.reason == "scheduler-connection-lost":
            raise _lost(context, "the scheduler no longer answers") from error
        raise TransientError(f"{context} was cancelled by the cluster: {error}; run again") from error
    except CancelledError as error:
        raise TransientError(f"{context} was cancelled by the cluster: {error}; run again") from error
    except (ClosedClientError, CommClosedError) as error:
        raise _lost(context, error) from error


def _lost(context: str, reason: object) -> TransientError:
    return TransientError(
        f"{context} was lost with its cluster: {reason}; start the scheduler and workers, and run again"
    )


def _check_encryption(scheduler: str) -> None:
    """Check address and certificates of dask's configuration first: dask reports both as TypeError or RuntimeError."""
    from distributed.security import Security

    encrypted, security = scheduler.startswith(ENCRYPTED), Security()
    if security.require_encryption and not encrypted:
        raise SettingsError(
            f"distribute.scheduler is {scheduler}, and dask's configuration requires encryption "
            "(distributed.comm.require-encryption); name a scheduler whose address begins with tls://"
        )
    if not encrypted:
        return
    try:
        context = security.get_connection_args("client")["ssl_context"]
    except OSError as error:  # also of OpenSSL
        raise SettingsError(
            f"the certificates for {scheduler} cannot be read: {error}; correct distributed.comm.tls.ca-file, "
            "client.cert and client.key in dask's configuration"
        ) from error
    if context is None:
        raise SettingsError(
            f"distribute.scheduler is {scheduler}, and dask's configuration names no certificates; set "
            "distributed.comm.tls.ca-file, client.cert and client.key there"
        )


def _check_reachable(scheduler: str) -> None:
    """Probe the port first: a dask client retries for its whole timeout, and hangs when dropped."""
    from distributed.comm.addressing import get_address_host_port

    try:
        host, port = get_address_host_port(scheduler, strict=True)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"distribute.scheduler must be an address like tcp://10.0.0.5:8786, not {scheduler!r}: {error}"
        ) from error
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_scheduler(scheduler, error) from error


def _no_scheduler(scheduler: str, reason: object) -> TransientError:
    return TransientError(
        f"no dask scheduler with a worker at {scheduler}: {reason}; start them or correct --scheduler"
    )


def _workers(client: Client) -> list[Any]:
    """The scheduler's facts of each worker; none while the connection is closed."""
    info = client.scheduler_info(n_workers=-1) if client.status == "running" else {}
    return [*info.get("workers", {}).values()]
