"""Staging areas: files exchanged between machines that share no other folder.

A file is written on the local disk first and then uploaded whole: it appears under its name, or not at all. So a
staging area needs no more than atomic uploads: a folder on a network file system, or an object store.
"""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pipeline.errors import SettingsError, TransientError
from pipeline.storage.files import atomic_path, ensure_dir, sha256_file
from pipeline.storage.folders import real_folder
from pipeline.storage.s3_folder import LocalFile, StoreFolder


class Exchange(Protocol):
    """A staging area that several machines reach; picklable, comparable, and safe to use from several threads."""

    def __hash__(self) -> int:
        """By its address."""
        ...

    def child(self, name: str) -> Exchange:
        """A staging area inside this one."""

    def upload(self, path: Path, name: str) -> int:
        """Upload a local file under a name, which may have slashes; returns its bytes.

        Raises:
            TransientError: the staging area is not reachable from this machine, or disk or network fail.
        """

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """Download a file atomically.

        Args:
            name: the uploaded file.
            target: the local file; its folder must exist.
            size: expected bytes, if known.

        Raises:
            TransientError: the file is missing or truncated, or disk or network fail.
        """

    def exists(self, name: str) -> bool:
        """Whether the file was uploaded."""

    def delete(self) -> None:
        """Delete the staging area with its files; those that cannot be deleted stay.

        Raises:
            AccessError: a link is in its place.
        """


def open_exchange(address: str) -> Exchange:
    """The staging area at an address: `s3://...`, or a folder, which is created if it is missing.

    Raises:
        SettingsError: the address has another scheme, or is malformed.
        TransientError: the folder cannot be created, or the store cannot be reached.
    """
    scheme, is_address, _ = address.partition("://")
    if scheme == "s3" and is_address:
        StoreFolder(address).check_reading()
        return StoreExchange(address=address)
    if is_address:
        raise SettingsError(
            f"distribute.exchange = {address!r}: files cannot be exchanged through {scheme}://; name a folder, or s3://"
        )
    folder = Path(address).expanduser().absolute()
    ensure_dir(folder)
    return FolderExchange(root=folder, folder=folder)


@dataclass(frozen=True, kw_only=True)
class FolderExchange:
    """A folder that all machines mount under the same path."""

    root: Path
    """The folder of `distribute.exchange`; a machine where it is missing has not mounted it."""
    folder: Path
    """The staging area, inside it."""

    def child(self, name: str) -> FolderExchange:
        """See `Exchange`."""
        return replace(self, folder=self.folder / name)

    def upload(self, path: Path, name: str) -> int:
        """See `Exchange`."""
        if not self.root.is_dir():
            raise _not_visible(self.root)
        real_folder(self.folder)
        target = self.folder / name
        ensure_dir(target.parent)
        with atomic_path(target) as partial:
            shutil.copyfile(path, partial)
            return partial.stat().st_size

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """See `Exchange`."""
        source = self.folder / name
        with atomic_path(target) as partial:
            try:
                shutil.copyfile(source, partial)
            except FileNotFoundError as error:
                raise _not_visible(source) from error
            _check_size(source, partial.stat().st_size, size)

    def exists(self, name: str) -> bool:
        """See `Exchange`."""
        return (self.folder / name).is_file()

    def delete(self) -> None:
        """See `Exchange`."""
        if real_folder(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class StoreExchange:
    """Objects below an `s3://` address; each machine uses its own credentials."""

    address: str
    prefix: str = ""
    """The staging area below it: empty, or folders that each end in a slash."""

    def child(self, name: str) -> StoreExchange:
        """See `Exchange`."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def upload(self, path: Path, name: str) -> int:
        """See `Exchange`."""
        self._store.upload({f"{self.prefix}{name}": LocalFile(path=path, sha256=sha256_file(path))})
        return path.stat().st_size

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """See `Exchange`."""
        with atomic_path(target) as partial:
            self._store.download(f"{self.prefix}{name}", partial)
            _check_size(self._store.address(f"{self.prefix}{name}"), partial.stat().st_size, size)

    def exists(self, name: str) -> bool:
        """See `Exchange`."""
        return self._store.sha256_of(f"{self.prefix}{name}") is not None

    def delete(self) -> None:
        """See `Exchange`."""
        folder = self.prefix.rstrip("/")
        with suppress(TransientError):
            self._store.remove(f"{self.prefix}{name}" for name in self._store.list_files(folder))

    @property
    def _store(self) -> StoreFolder:
        return StoreFolder(self.address)


def _check_size(source: object, size: int, expected: int | None) -> None:
    if expected is not None and size != expected:
        raise TransientError(
            f"{source}: {size:,} of {expected:,} bytes arrived; check the staging area (distribute.exchange), "
            "and run again"
        )


def _not_visible(path: Path) -> TransientError:
    return TransientError(
        f"{path}: not visible on {socket.gethostname()}; distribute.exchange must name a folder that client and "
        "workers mount under the same path, e.g. on a network file system"
    )
