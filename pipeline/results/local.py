"""Results of a run in a local folder or an object store: a folder for each scene, and the documents of the run.

Other packages name results by scene and file; this one knows their locations and which are complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.errors import SettingsError, TransientError
from pipeline.results.object_store import StoreResults
from pipeline.results.publish import FindFinished, finished_report, publishing
from pipeline.storage import (
    Location,
    atomic_path,
    atomic_write,
    directory_lock,
    ensure_dir,
    remove_stale_partials,
    resolve_location,
)

COLLAPSED = ("s3:/", "http:/", "https:/", "gs:/", "az:/")
"""Beginnings of addresses that `Path` has stripped of a slash."""


class Results(Protocol):
    """Results of scenes and documents of runs under one address; thread-safe.

    A name is a path with slashes below the address: `run.json`, `town/item.json`.
    """

    @property
    def text(self) -> str:
        """The address, as the operator wrote it."""

    def check(self, *, writing: bool = True) -> None:
        """Check access: SettingsError if the address cannot be read or written, TransientError if it is unavailable."""

    def address(self, name: str) -> str:
        """The address of a file or folder, existing or not, for reports and messages."""

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""

    def folder(self, scene_id: str) -> Path | None:
        """The folder of a scene's result, existing or not; None in an object store."""

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """A local folder with the scene's previous result, if its mosaic has this key; None if it cannot be reused.

        It exists until the new result is published.
        """

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's complete result with this content key; None without one."""

    def committed(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same; also None if an interrupted run left something that `recover` would process."""

    def recover(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """Publish or clean up what an interrupted run left, then return the same as `finished`.

        Raises:
            TransientError: disk or network fail, or another run is writing the same scene.
        """

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """A local work folder that becomes the scene's result on success; the previous one stays complete until then.

        Raises:
            TransientError: disk or network fail, or another run is writing the same scene.
        """

    def lock(self) -> AbstractContextManager[None]:
        """Hold a lock between runs while a document is read, changed and written.

        Raises:
            TransientError: the disk fails.
        """

    def scenes(self) -> Iterator[str]:
        """Names of folders that may be scenes' results, in order."""

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`; one listing serves all of them."""

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist.

        Raises:
            TransientError: disk or network fail.
        """

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document atomically, text as UTF-8. The caller must hold the lock.

        Raises:
            TransientError: disk or network fail.
        """

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists.

        Raises:
            TransientError: disk or network fail.
        """

    def download(self, name: str, folder: Path) -> Path:
        """A file on this machine: itself if it is local, else a copy below `folder`.

        Raises:
            TransientError: disk or network fail, or the file is missing.
        """

    def upload(self, name: str, path: Path) -> None:
        """Store a local file under a name, atomically.

        Raises:
            TransientError: disk or network fail.
        """


def open_results(out: str | Path, work_dir: str | Path | None = None) -> Results:
    """The results under an address, a folder or a prefix in an object store, created on the first write.

    Args:
        out: a path, or `s3://bucket/prefix` as text.
        work_dir: local work folder of results for an object store; None: below the system's temporary folder.

    Raises:
        SettingsError: not a valid address of results.
    """
    text = str(out)
    scheme, is_address, _ = text.partition("://")
    if is_address and scheme.lower() == "s3":
        return StoreResults(text, work_dir)
    if is_address:
        raise SettingsError(f"{text}: results cannot be written to {scheme}://; name a folder or s3:// with --out")
    if text.startswith(COLLAPSED):
        raise SettingsError(
            f"{text}: an address that lost a slash, as in a Path; pass it as text, e.g. s3://bucket/out"
        )
    return LocalResults(text)


class LocalResults:
    """Results in a folder."""

    def __init__(self, text: str) -> None:
        """`text` is the folder, as the operator wrote it."""
        self.text, self._folder = text, Path(text)

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the folder, or one above it, is a file."""
        folder = self._folder
        blocking = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if blocking.exists() and not blocking.is_dir():
            raise SettingsError(
                f"{folder}: results go into a folder, and {blocking} is a file; name another with --out"
            )

    def address(self, name: str) -> str:
        """The path of a file or folder."""
        return str(self._folder / name)

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""
        return resolve_location(self._folder / name)

    def folder(self, scene_id: str) -> Path | None:
        """The folder of a scene's result, existing or not."""
        return self._folder / scene_id

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The folder of a scene's result, existing or not."""
        return self.folder(scene_id)

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """See `publish.finished_report`."""
        return finished_report(self._folder / scene_id, key)

    def committed(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same: reading a local result repairs it."""
        return self.finished(scene_id, key)

    def recover(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same: reading a local result repairs it."""
        return self.finished(scene_id, key)

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """See `publish.publishing`."""
        return publishing(self._folder / scene_id)

    def lock(self) -> AbstractContextManager[None]:
        """See `storage.files.directory_lock`."""
        return directory_lock(self._folder)

    def scenes(self) -> Iterator[str]:
        """Names of visible folders, in order."""
        return iter(sorted(path.name for path in self._folder.glob("[!.]*") if path.is_dir()))

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`."""
        return ((name, partial(self.finished, name)) for name in self.scenes())

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""
        folder = self._folder / scene_id
        return {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist."""
        path = self._folder / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TransientError(f"{path}: cannot be read: {error}; check the disk and its permissions") from error

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document atomically; creates its folder and deletes partial files of killed writers."""
        path = self._folder / name
        ensure_dir(path.parent)
        remove_stale_partials(path)
        atomic_write(path, content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise TransientError(f"{path}: cannot be removed: {error}; check the disk and its permissions") from error

    def download(self, name: str, folder: Path) -> Path:
        """The file itself."""
        return self._folder / name

    def upload(self, name: str, path: Path) -> None:
        """Copy a file to its path, unless it is the same file."""
        target = self._folder / name
        if path != target:
            with atomic_path(target, ending=target.suffix) as partial_path:
                shutil.copyfile(path, partial_path)
