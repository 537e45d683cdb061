"""A worker process for each of several devices of this machine, under a scheduler of their own on loopback.

Each process sees one device only, runs one region at a time, and is replaced when it dies. They end with the process
that started them, however that ends.
"""

from __future__ import annotations

import logging
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

    scheduler = {"cls": Scheduler, "options": {"host": LOOPBACK, "port": 0, "dashboard": False}}
    workers = {
        f"{device}-{index}": {"cls": Nanny, "options": _worker_options(device, threads)}
        for index, device in enumerate(devices)
    }
    with dask.config.set({"distributed.deploy.lost-worker-timeout": NEVER}):
        try:
            cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise WorldError(f"no worker process could be started for {', '.join(devices)}: {error}") from error
        with cluster:
            yield cluster.scheduler_address


def _worker_options(device: str, threads: int) -> dict[str, object]:
    return {
        "host": LOOPBACK,
        "nthreads": 1,
        "resources": {"device": 1},
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.ERROR,
        "env": {**environment_for(device), "OMP_NUM_THREADS": str(threads)},
    }
