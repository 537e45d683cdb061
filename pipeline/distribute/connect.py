"""Connection to the dask cluster of the settings, and the staging area of its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from pipeline.distribute.client import connect
from pipeline.distribute.spec import DistributeSpec
from pipeline.storage import Exchange, open_exchange

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


def resolve_exchange(spec: DistributeSpec) -> Exchange | None:
    """The staging area of a run, if it has one; raises SettingsError, or TransientError if it is missing."""
    return None if spec.exchange is None else open_exchange(spec.exchange)


@contextmanager
def staging_area(spec: DistributeSpec, work: Path) -> Iterator[Exchange | None]:
    """Yield the part of the staging area that belongs to a work folder, empty before and after; None: there is none.

    Raises:
        SettingsError: the address is malformed.
        TransientError: the staging area is missing.
    """
    area = resolve_exchange(spec)
    if area is None:
        yield None
        return
    owner = sha256(f"{gethostname()} {work.absolute()}".encode()).hexdigest()[:8]
    area = area.child(f"{work.name.strip('.')}-{owner}")
    area.delete()
    try:
        yield area
    finally:
        area.delete()
