"""An exclusive, expiring lease on a scene's result in an object store.

A lock object names its holder. It is created only if absent, renewed while the work runs, and taken over by a
conditional write when it has not been renewed for `LEASE_S`. The owner is a local work folder, not a process: a run
that is restarted after a kill has the same folder and resumes immediately.
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
from pipeline.storage import StoredDocument, StoreFolder, atomic_write, disk_error, ensure_dir, is_opened, try_lock
from pipeline.text import read_json

LEASE_S = 300.0
"""An older lock is stale; ages are measured by the store's clock alone."""
RENEW_INTERVAL_S = 60.0
LOCK = ".lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LockRecord:
    """Content of a lock object."""

    owner: str
    """Name of the holder's local work folder."""
    lease: str
    host: str
    """Machine of the holder, for messages."""
    process: int
    since: str
    """When it took the lease, ISO 8601 in UTC."""
    renewed: int = 0
    """How often it has been renewed, so that no two versions are equal."""

    @property
    def content(self) -> bytes:
        """The record as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, found: StoredDocument | None) -> LockRecord | None:
        """The record in a lock object; None without a valid one."""
        try:
            return cls(**read_json(found.content)) if found else None
        except (ValueError, TypeError):
            return None


class Lease:
    """A lock object that this run holds."""

    def __init__(self, store: StoreFolder, name: str, record: LockRecord, etag: str) -> None:
        self._store, self._name, self._record, self._etag = store, name, record, etag
        self._mutex = threading.Lock()
        self._lost: TransientError | None = None

    def renew(self) -> None:
        """Extend the lease before a step that requires it; TransientError if another run has taken it over."""
        with self._mutex:
            # A lost lease stays lost, even if the lock object becomes free again.
            if self._lost is None:
                self._record = replace(self._record, renewed=self._record.renewed + 1)
                try:
                    self._etag = _write(self._store, self._name, self._record, self._etag)
                except ConflictError:
                    self._lost = TransientError(
                        f"{self._store.address(self._name)}: another run has taken over the lock, since this one did "
                        f"not renew it for {LEASE_S:.0f} s; run again"
                    )
            if self._lost is not None:
                raise self._lost

    def release(self) -> None:
        """Remove the lock object if this run still holds it; if that fails, it expires."""
        try:
            # A successful renewal proves that the lock object is not another run's.
            self.renew()
            self._store.remove([self._name])
        except TransientError as error:
            log.warning("%s", error)


@contextmanager
def hold_lease(store: StoreFolder, scene_id: str, local: Path) -> Iterator[Lease]:
    """Hold the lease of a scene's result; TransientError if another run holds it.

    `local` is the work folder, the same for every run on this machine that writes to this store.
    """
    # Runs on this machine have one owner name, so a file lock keeps them apart.
    with _machine_lock(local / f".{scene_id}.lock", store.address(scene_id)):
        lease = _acquire(store, f"{scene_id}/{LOCK}", _owner(local))
        stopped = threading.Event()
        heartbeat = threading.Thread(target=_renew_until, args=(lease, stopped), name="lease", daemon=True)
        heartbeat.start()
        try:
            yield lease
        finally:
            # Stop the heartbeat before the release, or it would report a lost lease.
            stopped.set()
            heartbeat.join()
            lease.release()


@contextmanager
def _machine_lock(path: Path, address: str) -> Iterator[None]:
    """Hold a file lock on this machine; the system frees it when the process dies."""
    ensure_dir(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise disk_error(f"{path}: cannot be opened", error) from error
    try:
        # The previous holder deletes the file, and a lock on a deleted file protects nothing.
        if not try_lock(handle) or not is_opened(handle, path):
            raise TransientError(f"{address}: another run on this machine is writing this result; wait for it")
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _owner(local: Path) -> str:
    """The unique name of the local work folder, created with `link` so that concurrent runs agree on one."""
    path, name = local / "owner", uuid4().hex
    if not path.is_file():
        offered = local / f"owner-{name}"
        atomic_write(offered, name)
        with suppress(FileExistsError):
            os.link(offered, path)
        offered.unlink()
    return path.read_text(encoding="utf-8")


def _acquire(store: StoreFolder, name: str, owner: str) -> Lease:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    record = LockRecord(owner=owner, lease=uuid4().hex, host=socket.gethostname(), process=os.getpid(), since=since)
    found = store.read(name)
    held = LockRecord.read(found)

    # The lock may be taken if it is absent, invalid, this work folder's own, or expired. A holder renews it every
    # minute, so one that was written minutes in the future is older than the last time the store's clock was set back.
    if found is not None and not (held is None or held.owner == owner or abs(found.age_s) > LEASE_S):
        raise _held_error(store, name, found)

    # Conditional on the version just read: of two runs that take over, one fails.
    try:
        etag = _write(store, name, record, found.etag if found else None)
    except ConflictError as error:
        raise _held_error(store, name, store.read(name)) from error
    now = store.read(name)
    if now is None or now.content != record.content:
        # The store ignores conditional writes, and another run wrote after this one.
        raise _held_error(store, name, now)
    return Lease(store, name, record, etag)


def _write(store: StoreFolder, name: str, record: LockRecord, etag: str | None) -> str:
    """Write the lock object if its ETag is still this one, or if it is absent (None); returns the new ETag."""
    try:
        if etag is None:
            return store.write_if_absent(name, record.content)
        return store.write_if_unchanged(name, record.content, etag)
    except ConflictError:
        found = store.read(name)
        if found is None or found.content != record.content:
            raise
        return found.etag  # this run's own write, whose response was lost


def _renew_until(lease: Lease, stopped: threading.Event) -> None:
    while not stopped.wait(RENEW_INTERVAL_S):
        try:
            lease.renew()
        except TransientError as error:
            log.warning("%s", error)


def _held_error(store: StoreFolder, name: str, found: StoredDocument | None) -> TransientError:
    held = LockRecord.read(found)
    who = f" ({held.host}, process {held.process}, since {held.since})" if held else ""
    return TransientError(
        f"{store.address(name.rpartition('/')[0])}: another run is writing this result{who}; wait for it, or write to "
        f"another --out. A stale lock expires after {LEASE_S:.0f} s"
    )
