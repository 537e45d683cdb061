"""Connection to the dask cluster of the settings, and the executor of a scene on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.distribute.client import connect
from pipeline.distribute.cluster_executor import ClusterExecutor
from pipeline.distribute.executor import Executor, LocalExecutor, ProgressCallback
from pipeline.distribute.spec import DistributeSpec

if TYPE_CHECKING:
    from distributed import Client


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


def scene_executor(
    spec: DistributeSpec, client: Client | None = None, progress: ProgressCallback | None = None
) -> Executor:
    """The executor of a scene: tasks of the client's cluster, or this process without a client."""
    return LocalExecutor(spec, progress) if client is None else ClusterExecutor(client, spec, progress)
