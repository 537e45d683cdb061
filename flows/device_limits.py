"""Device locks: a global concurrency limit of the Prefect server allows one run at a time on each device.

A run holds the limits of its devices from its first scene to its last. Without a server there are no limits, nor for a
run on a dask scheduler, where `device: 1` is a resource of each worker.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import MissingContextError, ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from flows.server_errors import ignore_server_errors
from pipeline.model.predictor import best_device, device_environment, device_type, resolve_devices

MACHINE = "SCENEMILL_MACHINE"
"""Environment variable with the machine's name in limits; for containers, whose host names change."""
LEASE_S = 180.0
"""A killed run frees its devices after this time; the server may be unreachable for a quarter of it."""


@contextmanager
def hold_devices(device: str | Sequence[str], *, scheduler: str | None = None) -> Iterator[None]:
    """Wait for the devices of a run, and hold them; nothing to hold if workers of a dask scheduler run the model.

    A missing limit is created with one slot. A run that holds its devices continues when the server is unreachable.
    """
    if scheduler is not None or PREFECT_API_URL.value() is None:
        yield
        return
    names = sorted({limit_name(each) for each in resolve_devices(device)})
    for name in names:
        _create(name)
    with suppress(MissingContextError):  # outside a run there is no log to write to
        get_run_logger().info("waiting for %s", ", ".join(names))
    with ExitStack() as held:
        held.enter_context(
            concurrency(names, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False)
        )
        try:
            yield
        finally:
            with ignore_server_errors():
                held.close()


def limit_name(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """The limit of a device: the machine's name and the device's number on that machine.

    >>> limit_name("cuda:1", {"SCENEMILL_MACHINE": "mill", "CUDA_VISIBLE_DEVICES": "4,6"})
    'scenemill-mill-cuda-6'
    >>> limit_name("cuda", {"SCENEMILL_MACHINE": "mill"}), limit_name("cpu", {"SCENEMILL_MACHINE": "mill"})
    ('scenemill-mill-cuda-0', 'scenemill-mill-cpu')
    """
    device = best_device() if device == "auto" else device
    machine, kind = environ.get(MACHINE) or platform.node(), device_type(device)
    numbered = f"cuda:{device.partition(':')[2] or 0}" if kind == "cuda" else device
    number = device_environment(numbered, environ).get("CUDA_VISIBLE_DEVICES")
    return re.sub(r"[^\w.]+", "-", "-".join(part for part in ("scenemill", machine, kind, number) if part))


def _create(name: str) -> None:
    """Create a limit of one slot unless it exists; an operator may have given it more slots."""
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
