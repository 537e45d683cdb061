"""The exchange place: where machines that share no other folder leave files for one another.

A file is made where its maker works, and then sent whole: it appears in the exchange place under its name, or not at
all. So the place may be anything that takes whole files: a network file system, or an object store.
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
from pipeline.storage.s3_folder import LocalFile, StoreFolder


class Exchange(Protocol):
    """A place for files that several machines reach; it pickles, compares, and serves several threads at once."""

    def __hash__(self) -> int:
        """Of its address."""
        ...

    def child(self, name: str) -> Exchange:
        """A place inside this one."""

    def upload(self, path: Path, name: str) -> int:
        """Bring a local file there, whole, under a name that may have slashes; returns its bytes.

        Raises:
            TransientError: this machine does not reach the place, or disk or network refuse.
        """

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """Bring a file from there into a local file, which appears whole or not at all.

        Args:
            name: the file.
            target: the local file; its folder must exist.
            size: bytes that it must have, where that is known.

        Raises:
            TransientError: the file is not there, or not whole, or disk or network refuse.
        """

    def exists(self, name: str) -> bool:
        """Whether such a file is there."""

    def delete(self) -> None:
        """Remove all that lies in the place, and the place; what cannot be removed stays."""


def open_exchange(address: str) -> Exchange:
    """The exchange place at an address: `s3://...`, or a folder, which is made if it is missing.

    Raises:
        SettingsError: no address that can be one.
        TransientError: the folder cannot be made, or the store not be reached.
    """
    scheme, is_address, _ = address.partition("://")
    if scheme == "s3" and is_address:
        return open_store(address)
    if is_address:
        raise SettingsError(
            f"distribute.exchange = {address!r}: files cannot be exchanged through {scheme}://; name a folder, or s3://"
        )
    folder = Path(address).expanduser().absolute()
    ensure_dir(folder)
    return FolderExchange(root=folder, folder=folder)


@dataclass(frozen=True, kw_only=True)
class FolderExchange:
    """A folder that every machine sees under the same path."""

    root: Path
    """The folder that the operator named; it is there on every machine, or that machine does not see it."""
    folder: Path
    """The place inside it."""

    def child(self, name: str) -> FolderExchange:
        """See `Exchange`."""
        return replace(self, folder=self.folder / name)

    def upload(self, path: Path, name: str) -> int:
        """See `Exchange`."""
        if not self.root.is_dir():
            raise _unseen(self.root)
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
                raise _unseen(source) from error
            check_whole(source, partial.stat().st_size, size)

    def exists(self, name: str) -> bool:
        """See `Exchange`."""
        return (self.folder / name).is_file()

    def delete(self) -> None:
        """See `Exchange`."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_whole(place: object, found: int, wanted: int | None) -> None:
    """Raise TransientError when a file has not the bytes that were sent."""
    if wanted is not None and found != wanted:
        raise TransientError(
            f"{place}: {found:,} bytes arrived of {wanted:,}; look at the exchange place, and run again"
        )


def _unseen(path: Path) -> TransientError:
    return TransientError(
        f"{path}: not to be seen on {socket.gethostname()}; distribute.exchange must name a folder that client and "
        "workers see under one path, e.g. on a network file system"
    )


@dataclass(frozen=True, kw_only=True)
class StoreExchange:
    """Objects below an `s3://` address; every machine reaches them with credentials of its own."""

    address: str
    """The address that the operator named."""
    inside: str = ""
    """The place below it: folders, each with a slash behind."""

    def child(self, name: str) -> StoreExchange:
        """See `Exchange`."""
        return replace(self, inside=f"{self.inside}{name}/")

    def upload(self, path: Path, name: str) -> int:
        """See `Exchange`."""
        self._store.upload({f"{self.inside}{name}": LocalFile(path=path, sha256=sha256_file(path))})
        return path.stat().st_size

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """See `Exchange`."""
        with atomic_path(target) as partial:
            self._store.download(f"{self.inside}{name}", partial)
            check_whole(self._store.address(f"{self.inside}{name}"), partial.stat().st_size, size)

    def exists(self, name: str) -> bool:
        """See `Exchange`."""
        return self._store.sha256_of(f"{self.inside}{name}") is not None

    def delete(self) -> None:
        """See `Exchange`."""
        folder = self.inside.rstrip("/")
        with suppress(TransientError):
            self._store.remove(f"{self.inside}{name}" for name in self._store.list_files(folder))

    @property
    def _store(self) -> StoreFolder:
        return StoreFolder(self.address)


def open_store(address: str) -> StoreExchange:
    """The exchange place at an `s3://` address.

    Raises:
        SettingsError: no address of that form.
        TransientError: it cannot be reached with the credentials of this machine.
    """
    StoreFolder(address).check_reading()
    return StoreExchange(address=address)
