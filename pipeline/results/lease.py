"""The lease of a result in an object store: one run writes it, others are refused until it ends or falls silent.

A lock object says who holds it; it is made only if none is there, renewed while the work lasts, and taken over, by a
conditional write, when it has not been renewed for `LEASE_S`. Its owner is a local work folder, not a process: a run
that is started again after a kill holds the same folder, and goes on at once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pipeline.errors import ConflictError, TransientError
from pipeline.storage import StoredDocument, StoreFolder, atomic_write, ensure_dir, try_lock

LEASE_S = 300.0
"""A lock that is older has been left behind; only clocks of the store are compared."""
RENEWED_EVERY_S = 60.0
LOCK = ".lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LockRecord:
    """What a lock object says."""

    owner: str
    """Name of the holder's local work folder."""
    lease: str
    """Name of this lease, like no other."""
    host: str
    """Machine of the holder, for messages."""
    process: int
    """Its process, for messages."""
    since: str
    """When it took the lease, ISO 8601 in UTC."""
    renewed: int = 0
    """How often it has been renewed; so that no two versions are alike."""

    @property
    def content(self) -> bytes:
        """The record as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, found: StoredDocument | None) -> LockRecord | None:
        """The record of a lock object; None where there is none, or none of ours."""
        try:
            return cls(**json.loads(found.content)) if found else None
        except (ValueError, TypeError):
            return None


class Lease:
    """A lock object that is ours."""

    def __init__(self, store: StoreFolder, name: str, record: LockRecord, etag: str) -> None:
        self._store, self._name, self._record, self._etag = store, name, record, etag
        self._turn = threading.Lock()
        self._lost: TransientError | None = None

    def renew(self) -> None:
        """Prolong the lease, before what only its holder may do.

        Raises:
            TransientError: another run has taken it over, or the store fails.
        """
        with self._turn:
            if self._lost is None:
                self._record = replace(self._record, renewed=self._record.renewed + 1)
                try:
                    self._etag = _write(self._store, self._name, self._record, self._etag)
                except ConflictError:
                    self._lost = TransientError(
                        f"{self._store.address(self._name)}: another run has taken over the lock, since this one was "
                        f"silent for {LEASE_S:.0f} s; run again"
                    )
            if self._lost is not None:
                raise self._lost

    def release(self) -> None:
        """Remove the lock object if it is still ours; one that cannot be removed runs out."""
        try:
            self.renew()
            self._store.remove([self._name])
        except TransientError as error:
            log.warning("%s", error)


@contextmanager
def leased(store: StoreFolder, scene_id: str, local: Path) -> Iterator[Lease]:
    """Hold the lease of a scene's result.

    Args:
        store: where the results are.
        scene_id: whose result.
        local: folder of the local work, the same for every run of this machine into this store.

    Raises:
        TransientError: another run holds it, or the store fails.
    """
    with _only_here(local / f".{scene_id}.lock", store.address(scene_id)):
        lease = _take(store, f"{scene_id}/{LOCK}", _owner(local))
        stopped = threading.Event()
        beating = threading.Thread(target=_keep, args=(lease, stopped), name="lease", daemon=True)
        beating.start()
        try:
            yield lease
        finally:
            stopped.set()
            beating.join()
            lease.release()


@contextmanager
def _only_here(path: Path, address: str) -> Iterator[None]:
    """Hold a lock of this machine; the system frees it when the process dies."""
    ensure_dir(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_lock(handle) or not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
            raise TransientError(f"{address}: another run on this machine is writing this result; wait for it")
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _owner(local: Path) -> str:
    """The name of the local work folder, which is like no other."""
    path, name = local / "owner", uuid4().hex
    if not path.is_file():
        offered = local / f"owner-{name}"
        atomic_write(offered, name)
        with suppress(FileExistsError):
            os.link(offered, path)
        offered.unlink()
    return path.read_text(encoding="utf-8")


def _take(store: StoreFolder, name: str, owner: str) -> Lease:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    record = LockRecord(owner=owner, lease=uuid4().hex, host=socket.gethostname(), process=os.getpid(), since=since)
    found = store.read(name)
    held = LockRecord.read(found)
    if found is not None and not (held is None or held.owner == owner or found.age_s > LEASE_S):
        raise _held(store, name, found)
    try:
        etag = _write(store, name, record, found.etag if found else None)
    except ConflictError as error:
        raise _held(store, name, store.read(name)) from error
    now = store.read(name)
    if now is None or now.content != record.content:
        raise _held(store, name, now)  # the store knows no conditions, and somebody else wrote after us
    return Lease(store, name, record, etag)


def _write(store: StoreFolder, name: str, record: LockRecord, etag: str | None) -> str:
    """Write the lock object if it is still the one of this ETag, or if there is none; returns its new ETag."""
    try:
        if etag is None:
            return store.write_if_absent(name, record.content)
        return store.write_if_unchanged(name, record.content, etag)
    except ConflictError:
        found = store.read(name)
        if found is None or found.content != record.content:
            raise
        return found.etag  # ours: the answer to a former try was lost


def _keep(lease: Lease, stopped: threading.Event) -> None:
    while not stopped.wait(RENEWED_EVERY_S):
        try:
            lease.renew()
        except TransientError as error:
            log.warning("%s", error)


def _held(store: StoreFolder, name: str, found: StoredDocument | None) -> TransientError:
    held = LockRecord.read(found)
    who = f" ({held.host}, process {held.process}, since {held.since})" if held else ""
    return TransientError(
        f"{store.address(name.rpartition('/')[0])}: another run is writing this result{who}; wait for it, or write to "
        f"another --out. A lock that is left behind counts no more after {LEASE_S:.0f} s"
    )
