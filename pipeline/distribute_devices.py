"""A worker process for each of several devices of this machine, under a scheduler of their own on loopback.

Each process sees one device only, runs one region at a time, and is replaced when it dies. They end with the process
that started them, however that ends.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.devices import environment_for
from pipeline.errors import WorldError

LOOPBACK = "127.0.0.1"
NEVER = "1000 days"
"""dask's cluster gives up a worker that has not come back after 15 s, whether or not a new process is on its way."""


@contextmanager
def device_workers(devices: Sequence[str], *, threads: int) -> Iterator[str]:
    """Start a worker process per device, and yield the address of their scheduler.

    Args:
        devices: `cpu` or `cuda:N`, as this process numbers them.
        threads: CPU threads of each process.

    Raises:
        WorldError: the processes cannot be started.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    here = {"host": LOOPBACK, "port": 0, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    scheduler = {"cls": Scheduler, "options": here}
    workers = {
        f"{device}-{index}": {"cls": Nanny, "options": _worker_options(device, threads)}
        for index, device in enumerate(devices)
    }
    with _warnings_only(), dask.config.set({"distributed.deploy.lost-worker-timeout": NEVER}):
        try:
            cluster = SpecCluster(workers=workers, scheduler=scheduler)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise WorldError(
                f"no worker process could be started for {', '.join(devices)}: {error} See what the processes printed; "
                'a script that starts them needs `if __name__ == "__main__":` around its calls'
            ) from error
        with cluster:
            yield cluster.scheduler_address


def dask_setup(_: object) -> None:
    """Called by dask in each worker process: Ctrl-C is meant for the process that started it, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _worker_options(device: str, threads: int) -> dict[str, object]:
    return {
        "host": LOOPBACK,
        "nthreads": 1,
        "resources": {"device": 1},
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        "preload": [__name__],
        "env": {**environment_for(device), "OMP_NUM_THREADS": str(threads)},
    }


@contextmanager
def _warnings_only() -> Iterator[None]:
    """A scheduler that lives in this process logs its every step; a lost worker is worth a line, the rest is not."""
    log = logging.getLogger("distributed")
    former = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(former)
