"""Files that appear whole or not at all, whatever is killed and whenever; and who may write where."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

from pipeline.errors import TransientError


def sha256_file(file: Path) -> str:
    """What a file's content is known by."""
    with file.open("rb") as stream:
        return f"{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def sha256_of_json(document: object) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys; other values are written by `str`."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


_TOKEN = 8
"""Hexadecimal digits that tell the writers of one file apart."""


@contextmanager
def atomic_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """A path beside the target to write a file to: flushed to the disk and renamed on success, removed on failure.

    `path` is the former file, or none, until it is the whole new one. What lies beside the written file under a
    longer name, such as a database's journal, is removed with it.

    Args:
        path: the file to write or replace; its folder must exist.
        ending: how the written file's name must end, for libraries that judge a file by its name.

    Raises:
        TransientError: the disk refuses, here or in the body.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:_TOKEN]}.partial{ending}")
    try:
        yield partial
        fsync(partial)
        partial.replace(path)
        fsync(path.parent)
    except OSError as error:
        raise TransientError(f"{path}: cannot be written: {error}; check the disk and its permissions") from error
    finally:
        _remove(path.parent, f"{escape(partial.name)}*")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8, whole or not at all.

    Raises:
        TransientError: the disk refuses.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def ensure_dir(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        TransientError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TransientError(f"{folder}: cannot be made: {error}; check the disk and its permissions") from error


def remove_stale_partials(path: Path) -> None:
    """Remove what killed writers of a file left beside it; only where nobody else writes it now."""
    _remove(path.parent, f".{escape(path.name)}.{'[0-9a-f]' * _TOKEN}.partial*")


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def directory_lock(folder: Path) -> Iterator[None]:
    """Be alone in changing what a folder holds, which is made if it is missing: others who ask for it wait.

    Raises:
        TransientError: the disk refuses.
    """
    ensure_dir(folder)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TransientError(f"{folder}: cannot be opened: {error}; check the disk and its permissions") from error
    try:
        try_lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int, *, wait: bool = False) -> bool:
    """Take the lock of an open file or folder, until the handle closes or the process dies; False = another has it.

    Some network disks know no locks; there it is taken for granted.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
