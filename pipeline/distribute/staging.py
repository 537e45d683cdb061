"""Staging area of a run: a folder or object store through which client and workers transfer files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname

from pipeline.distribute.spec import DistributeSpec
from pipeline.storage import Exchange, open_exchange


def resolve_exchange(spec: DistributeSpec) -> Exchange | None:
    """The staging area of a run, if it has one; raises SettingsError, or TransientError if it is missing."""
    return None if spec.exchange is None else open_exchange(spec.exchange)


@contextmanager
def staging_area(spec: DistributeSpec, work: Path) -> Iterator[Exchange | None]:
    """Yield the part of the staging area that belongs to a work folder, empty before and after; None: there is none."""
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
