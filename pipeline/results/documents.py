"""Key-value store of a run's files and documents, in a local folder or an object store.

A name is a path with slashes below the address: `run.json`, `town/item.json`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.errors import AccessError, MissingError, SettingsError
from pipeline.storage import (
    LocalFile,
    Location,
    StoreFolder,
    atomic_path,
    atomic_write,
    directory_lock,
    disk_error,
    ensure_dir,
    is_file,
    private_folder,
    read_file,
    remove_stale_partials,
    resolve_location,
    sha256_file,
    store_access,
)

MAX_DOCUMENT_BYTES = 2**30
"""A longer document is not read: `run.json` takes about 1 kB for each scene."""


class Documents(Protocol):
    """Files under one address; thread-safe. Every method that accesses them raises TransientError if that fails."""

    @property
    def folder(self) -> Path | None:
        """The local folder, existing or not; None in an object store."""

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError if the address cannot be read or written."""

    def address(self, name: str) -> str:
        """The address of a file or folder, existing or not, for reports and messages."""

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold a lock between runs while a document is read, changed and written."""

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist."""

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document atomically, text as UTF-8. The caller must hold the lock."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of each file in a folder, by file name."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def download(self, name: str, folder: Path) -> Path:
        """A file on this machine: itself if it is local, else a copy below `folder`."""

    def upload(self, name: str, path: Path) -> None:
        """Store a local file under a name, atomically."""


class LocalDocuments:
    """Documents in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the folder, or one above it, is a file, or may not be written."""
        folder = self.folder
        # The nearest existing ancestor decides whether the folder can be created.
        nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if nearest.exists() and not nearest.is_dir():
            raise SettingsError(f"{folder}: results go into a folder, and {nearest} is a file; name another with --out")
        if writing and nearest.exists() and not os.access(nearest, os.W_OK | os.X_OK):
            raise SettingsError(
                f"{folder}: results cannot be written, since {nearest} may not be written by this user, or its disk is "
                "read-only; name another with --out"
            )

    def address(self, name: str) -> str:
        """The path of a file or folder."""
        return str(self.folder / name)

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""
        return resolve_location(self.folder / name)

    def lock(self) -> AbstractContextManager[None]:
        """See `storage.files.directory_lock`."""
        return directory_lock(self.folder)

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist."""
        path = self.folder / name
        try:
            return read_file(path, max_bytes=MAX_DOCUMENT_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk_error(f"{path}: cannot be read", error) from error

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document atomically; creates its folder and deletes partial files of killed writers."""
        path = self.folder / name
        ensure_dir(path.parent)
        remove_stale_partials(path)
        atomic_write(path, content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        path = self.folder / name
        return path.stat().st_size if is_file(path) else None

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of each file in a folder, by file name."""
        return {path.name: path.stat().st_size for path in (self.folder / folder).glob("*") if is_file(path)}

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(f"{path}: cannot be removed", error) from error

    def download(self, name: str, folder: Path) -> Path:
        """The file itself."""
        return self.folder / name

    def upload(self, name: str, path: Path) -> None:
        """Copy a file to its path, unless it is the same file."""
        target = self.folder / name
        if path != target:
            ensure_dir(target.parent)
            with atomic_path(target, ending=target.suffix) as partial_path:
                shutil.copyfile(path, partial_path)


class StoreDocuments:
    """Documents in an object store, where every write is atomic."""

    folder: None = None

    def __init__(self, store: StoreFolder, work_dir: str | Path | None = None) -> None:
        """`work_dir` holds the lock, see `work_folder_of`."""
        self._store, self._work_dir = store, work_dir

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the bucket does not exist, or these credentials may not use it."""
        try:
            self._store.check_reading()
            if writing:
                # Only a trial write shows whether these credentials may write.
                name = f".writable-{os.urandom(8).hex()}"
                self._store.write(name, b"")
                self._store.remove([name])
                work_folder_of(self._store, self._work_dir)
        except (MissingError, AccessError) as error:
            raise SettingsError(f"--out {error}") from error

    def address(self, name: str) -> str:
        """The `s3://` address of a file or folder."""
        return self._store.address(name)

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""
        return resolve_location(self._store.address(name))

    def lock(self) -> AbstractContextManager[None]:
        """Excludes other runs on this machine only."""
        return directory_lock(work_folder_of(self._store, self._work_dir))

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist."""
        found = self._store.read(name)
        return None if found is None else found.content

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document, text as UTF-8."""
        self._store.write(name, content.encode() if isinstance(content, str) else content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        return self._store.size_of(name)

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of each visible file in a folder, by file name."""
        listed = self._store.list_files(folder).items()
        return {name: file.size_bytes for name, file in listed if not name.startswith(".")}

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        self._store.remove([name])

    def download(self, name: str, folder: Path) -> Path:
        """Download a file into a folder, under its name."""
        path = folder / name
        ensure_dir(path.parent)
        self._store.download(name, path)
        return path

    def upload(self, name: str, path: Path) -> None:
        """Upload a file."""
        self._store.upload({name: LocalFile(path=path, sha256=sha256_file(path))})


def work_folder_of(store: StoreFolder, work_dir: str | Path | None) -> Path:
    """The local work folder of an address, the same in every run and private to this user; created if it is missing.

    By default it is below the system's temporary folder, where any user can create folders of any name.

    Raises:
        AccessError: a folder of its name is a link or another user's.
    """
    # Two endpoints may have buckets of the same name.
    identity = f"{store_access().endpoint} {store.text}"
    parent = private_folder() if work_dir is None else Path(work_dir)
    return private_folder(hashlib.sha256(identity.encode()).hexdigest()[:16], parent=parent)
