"""Worker processes on this machine, with a device or a share of the CPU each, under a scheduler of their own.

Each process sees one device only, runs one region at a time, and is replaced when it dies. Beside the region it may
finish a scene, which needs no device. They end with the process that started them, however that ends, and at once.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from pipeline.errors import SettingsError, TransientError
from pipeline.model.predictor import environment_for

if TYPE_CHECKING:
    from pipeline.distribute.nanny import KillingNanny

LOOPBACK = "127.0.0.1"
DASK_SETTINGS = {"distributed.deploy.lost-worker-timeout": "1000 days", "distributed.worker.profile.enabled": False}
"""Without them dask's cluster gives up a worker that has not come back after 15 s, whether or not a new process is on
its way; and each worker looks at all its stacks a hundred times a second, for a page that nobody serves."""
SHARED_OPTIONS = ("host", "nthreads", "resources", "memory_limit", "silence_logs")
"""Those of our options that dask-cuda hands on to its workers."""
TASKS = 2
"""What a process does at once: a region on its device, and the end of a scene that needs none."""


@contextmanager
def device_workers(devices: Sequence[str], *, threads: int) -> Iterator[str]:
    """Start a worker process per device, and yield the address of their scheduler.

    Args:
        devices: `cpu` or `cuda:N`, as this process numbers them.
        threads: CPU threads of each process.

    Raises:
        TransientError: the processes cannot be started.
    """
    from distributed import Scheduler, SpecCluster

    from pipeline.distribute.nanny import own_nanny

    nanny = own_nanny()
    here = {"host": LOOPBACK, "port": 0, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    scheduler = {"cls": Scheduler, "options": here}
    workers = {
        f"{device}-{index}": {"cls": nanny, "options": _worker_options(device, threads)}
        for index, device in enumerate(devices)
    }
    with _started(lambda: SpecCluster(workers=workers, scheduler=scheduler), nanny, devices) as address:
        yield address


@contextmanager
def dask_cuda_workers(devices: Sequence[str]) -> Iterator[str]:
    """`device_workers` for CUDA devices, started by dask-cuda: each process is bound to the CPUs nearest to its device.

    Raises:
        SettingsError: a device is not CUDA, or dask-cuda is not installed.
        TransientError: the processes cannot be started.
    """
    if not devices or any(not device.startswith("cuda:") for device in devices):
        raise SettingsError(
            f"distribute.dask_cuda starts processes for CUDA devices, and inference.device is {', '.join(devices)!r}; "
            "name them, e.g. inference.device=cuda:all, or leave distribute.dask_cuda out"
        )
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise SettingsError(
            f"distribute.dask_cuda needs the package dask-cuda, which cannot be imported ({error}); install it, or "
            "leave distribute.dask_cuda out: the processes are then started without it"
        ) from error
    from pipeline.distribute.nanny import own_nanny

    nanny = own_nanny()
    visible = [environment_for(device)["CUDA_VISIBLE_DEVICES"] for device in devices]
    options = {key: value for key, value in _worker_options("cpu", 1).items() if key in SHARED_OPTIONS}
    options |= {"dashboard_address": f"{LOOPBACK}:0", "scheduler_port": 0, "worker_class": nanny}
    threads = options.pop("nthreads")
    with _started(
        lambda: LocalCUDACluster(CUDA_VISIBLE_DEVICES=visible, threads_per_worker=threads, **options), nanny, devices
    ) as address:
        yield address


@contextmanager
def _started(start: Callable[[], Any], nanny: type[KillingNanny], devices: Sequence[str]) -> Iterator[str]:
    """Yield the address of a cluster's scheduler, and end the cluster afterwards."""
    import dask

    with _warnings_only(), dask.config.set(DASK_SETTINGS):
        try:
            cluster = _begun(start, nanny)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise TransientError(
                f"no worker process could be started for {', '.join(devices)}: {error} See what the processes printed; "
                'a script that starts them needs `if __name__ == "__main__":` around its calls'
            ) from error
        with cluster:
            try:
                yield cluster.scheduler_address
            finally:
                _hush()


def _begun(start: Callable[[], Any], nanny: type[KillingNanny]) -> Any:
    """A cluster, begun in a thread of its own: Ctrl-C meanwhile would leave half a cluster that nobody ends."""
    resource_tracker.ensure_running()  # when it begins, it would let Ctrl-C through again
    with ThreadPoolExecutor(1, "cluster", initializer=_hold_ctrl_c) as thread:
        begun = thread.submit(start)
        try:
            wait([begun])
        except BaseException:
            _hush()
            _call_off(begun, nanny)
            raise
    return begun.result()


def _call_off(begun: Future[Any], nanny: type[KillingNanny]) -> None:
    """End a cluster that is being begun: it ends itself when its processes die meanwhile."""
    while wait([begun], timeout=0.05).not_done:
        nanny.strike_all()
    if begun.exception() is None:
        begun.result().close()


def _hold_ctrl_c() -> None:
    """Ctrl-C is meant for the process that started the others: they take over what this thread lets through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _worker_options(device: str, threads: int) -> dict[str, object]:
    return {
        "host": LOOPBACK,
        "nthreads": TASKS,
        "resources": {"device": 1},
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
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


def _hush() -> None:
    """What dask says while its cluster is ended tells nothing new."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
