"""Local dask workers: one process per device, or per share of the CPU, under a scheduler of this process.

Each process sees one device, runs one region at a time, and is restarted when it dies. Next to the region it may run
the output stages of a scene, which need no device. The processes end at once with the process that started them,
however that ends. They listen on the loopback interface, and talk over TLS with a certificate that exists only in their
memory: without it, any user of the machine could run code in them.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from pipeline.errors import SettingsError, TransientError
from pipeline.model.predictor import device_environment

if TYPE_CHECKING:
    from pipeline.distribute.nanny import KillingNanny

LOOPBACK = "127.0.0.1"
DASK_SETTINGS: Mapping[str, object] = {
    # By default dask drops a worker that has not come back after 15 s, even while its process restarts.
    "distributed.deploy.lost-worker-timeout": "1000 days",
    # A worker would sample its stacks a hundred times a second, for a dashboard that is off.
    "distributed.worker.profile.enabled": False,
    # Without a dashboard there would still be pages of tasks and workers, for any user of the machine.
    "distributed.scheduler.http.routes": (),
    "distributed.worker.http.routes": (),
}
"""Settings of dask while local workers run."""
SHARED_OPTIONS = ("host", "nthreads", "resources", "memory_limit", "silence_logs")
"""Worker options that dask-cuda passes on."""
TASKS_PER_WORKER = 2
"""Threads of a process: one for a region on its device, one for output stages."""


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

    from pipeline.distribute.nanny import new_nanny_class

    nanny = new_nanny_class()
    options = {"host": LOOPBACK, "protocol": "tls", "port": 0, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    scheduler = {"cls": Scheduler, "options": options}
    workers = {
        f"{device}-{index}": {"cls": nanny, "options": _worker_options(device, threads)}
        for index, device in enumerate(devices)
    }
    with _running_cluster(lambda: SpecCluster(workers=workers, scheduler=scheduler), nanny, devices) as address:
        yield address


@contextmanager
def dask_cuda_workers(devices: Sequence[str]) -> Iterator[str]:
    """`device_workers` for CUDA devices, started by dask-cuda, which binds each process to the CPUs near its device.

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
    from pipeline.distribute.nanny import new_nanny_class

    nanny = new_nanny_class()
    visible = [device_environment(device)["CUDA_VISIBLE_DEVICES"] for device in devices]
    options = {key: value for key, value in _worker_options("cpu", 1).items() if key in SHARED_OPTIONS}
    options |= {"dashboard_address": f"{LOOPBACK}:0", "protocol": "tls", "scheduler_port": 0, "worker_class": nanny}
    threads = options.pop("nthreads")
    with _running_cluster(
        lambda: LocalCUDACluster(CUDA_VISIBLE_DEVICES=visible, threads_per_worker=threads, **options), nanny, devices
    ) as address:
        yield address


@contextmanager
def _running_cluster(start: Callable[[], Any], nanny: type[KillingNanny], devices: Sequence[str]) -> Iterator[str]:
    """Yield the address of a cluster's scheduler, and close the cluster afterwards."""
    import dask

    with _dask_warnings_only(), dask.config.set({**DASK_SETTINGS, **_new_certificate()}):
        try:
            cluster = _start_cluster(start, nanny)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise TransientError(
                f"no worker process could be started for {', '.join(devices)}: {error} See what the processes printed; "
                'a script that starts them needs `if __name__ == "__main__":` around its calls'
            ) from error
        with cluster:
            try:
                yield cluster.scheduler_address
            finally:
                _silence_dask()


def _new_certificate() -> dict[str, str]:
    """Dask's settings of a certificate that is its own authority, for all processes of one cluster."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "scenemill")])
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        # Valid at any time: it is forgotten when the run ends, and a clock that is set back must not end the run.
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    texts = {"cert": certificate.public_bytes(plain[0]).decode(), "key": key.private_bytes(*plain).decode()}
    roles = {f"{role}.{part}": text for role in ("scheduler", "worker", "client") for part, text in texts.items()}
    return {f"distributed.comm.tls.{name}": text for name, text in {"ca-file": texts["cert"], **roles}.items()}


def _start_cluster(start: Callable[[], Any], nanny: type[KillingNanny]) -> Any:
    """Start a cluster in another thread: Ctrl-C during the start would leave half a cluster running."""
    resource_tracker.ensure_running()  # its own start would unblock SIGINT
    with ThreadPoolExecutor(1, "cluster", initializer=_block_sigint) as thread:
        starting = thread.submit(start)
        try:
            # Ctrl-C interrupts this wait, not the start itself.
            wait([starting])
        except BaseException:
            _silence_dask()
            _cancel_start(starting, nanny)
            raise
    return starting.result()


def _cancel_start(starting: Future[Any], nanny: type[KillingNanny]) -> None:
    """Stop a cluster while it starts: it closes itself when its processes die."""
    while wait([starting], timeout=0.05).not_done:
        nanny.kill_all()
    if starting.exception() is None:
        starting.result().close()


def _block_sigint() -> None:
    """Only the parent process handles Ctrl-C: child processes inherit the signal mask of this thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _worker_options(device: str, threads: int) -> dict[str, object]:
    return {
        "host": LOOPBACK,
        "nthreads": TASKS_PER_WORKER,
        "resources": {"device": 1},
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        "env": {**device_environment(device), "OMP_NUM_THREADS": str(threads)},
    }


@contextmanager
def _dask_warnings_only() -> Iterator[None]:
    """Log warnings of dask, e.g. lost workers, and not each step of the scheduler in this process.

    A worker that ends while it connects is a failed handshake, which is no news in addition to its end.
    """
    levels = {"distributed": logging.WARNING, "distributed.comm.tcp": logging.ERROR}
    usual = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in usual.items():
            logging.getLogger(name).setLevel(level)


def _silence_dask() -> None:
    """Messages of a cluster that is closing carry no information."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
