"""Atomic file writes and advisory locks: a file appears whole or not at all, whenever a process is killed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

from pipeline.errors import AccessError, TransientError

_TOKEN_DIGITS = 8
"""Random hexadecimal digits in the name of a partial file; several processes may write the same target."""

_PERMANENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a disk that recur until someone changes permissions, names or links."""


def disk_error(problem: str, error: OSError) -> TransientError:
    """The error for a file or folder: `problem` names it and says what cannot be done; no retry where none can help."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TransientError(f"{problem}: {error}; the process may open too few files: raise `ulimit -n`")
    kind = AccessError if error.errno in _PERMANENT else TransientError
    return kind(f"{problem}: {error}; check the disk and its permissions")


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file that is no link; a pipe, which may never end, is not opened for reading.

    Raises:
        OSError: it is missing, another kind of file, or longer than `max_bytes`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(file.fileno())
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"no regular file of at most {max_bytes:,} bytes", str(path))
        return file.read(max_bytes)


def sha256_file(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(document: object) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys; other values are written by `str`."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


class NotRegularError(OSError):
    """A pipe, socket or device where a regular file is due; to open one can block for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "is no regular file, but a pipe, socket or device", str(path))


def check_regular(path: Path) -> os.stat_result:
    """Size, time and kind of a regular file or folder, without opening it.

    Raises:
        NotRegularError: it is a pipe, socket or device.
        OSError: it is missing, or its folder may not be entered.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NotRegularError(path)
    return found


@contextmanager
def atomic_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it is fsynced and renamed, on failure removed.

    `path` is the previous file, or absent, until it is the complete new one. Files whose names begin with that of the
    temporary file, such as a database's journal, are removed as well.

    Args:
        path: the file to write or replace; its folder must exist.
        ending: suffix of the temporary file's name, for libraries that check a file's suffix.

    Raises:
        TransientError: the disk fails, here or in the body.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:_TOKEN_DIGITS]}.partial{ending}")
    try:
        yield partial
        # Content before name: after a power cut the new name must not lead to missing content.
        fsync(partial)
        partial.replace(path)
        # The rename is persistent once the folder's list of names is.
        fsync(path.parent)
    except OSError as error:
        raise disk_error(f"{path}: cannot be written", error) from error
    finally:
        _remove(path.parent, f"{escape(partial.name)}*")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file atomically, text as UTF-8.

    Raises:
        TransientError: the disk fails.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def ensure_dir(folder: Path) -> None:
    """Create a folder and its missing parents.

    Raises:
        TransientError: the disk fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(f"{folder}: cannot be made", error) from error


def remove_stale_partials(path: Path) -> None:
    """Delete partial files of `path` that interrupted writers left; the caller must hold the lock of their folder."""
    _remove(path.parent, f".{escape(path.name)}.{'[0-9a-f]' * _TOKEN_DIGITS}.partial*")


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def directory_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a folder, which is created if it is missing; wait while another process holds it.

    Raises:
        TransientError: the disk fails.
    """
    ensure_dir(folder)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise disk_error(f"{folder}: cannot be opened", error) from error
    try:
        _flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Take the lock of an open file or folder, until the handle closes or the process dies; False = it is held.

    Network disks without locks grant it always.
    """
    return _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
