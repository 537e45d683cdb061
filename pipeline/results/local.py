"""What a run's `out` is: a folder for each scene, and the documents of the run beside them.

Rooms that make results name them by scene and file, and ask here where these are and what is there already.
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
"""How an address begins that was taken for a path."""


class Results(Protocol):
    """Results of scenes and the documents of runs, all under one address; safe to use from several threads.

    A name is that of a file, or a path with slashes below the address: `run.json`, `town/item.json`.
    """

    @property
    def text(self) -> str:
        """The address, as the operator wrote it."""

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError where nothing can be written or read, TransientError where that cannot be known now."""

    def address(self, name: str) -> str:
        """Where something is or would be, for reports and messages."""

    def place(self, name: str) -> Location:
        """Where a raster is, for opening it."""

    def folder(self, scene_id: str) -> Path | None:
        """The folder of a scene's result, there or not; None where it is not on this machine."""

    def former(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """A local folder with the former result of a scene, if its mosaic has this key; None: it is not worth a look.

        It is there while a new result is being published.
        """

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's whole result with this content key; None where there is none that is believed."""

    def settled(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same; None, too, where something of a killed run is left that `recovered` would see to."""

    def recovered(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same, after what a killed run left whole has been brought there.

        Raises:
            TransientError: disk or network refuse, or another run is writing the same scene.
        """

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """A local work folder whose files are the scene's result on success; the former stays whole until then.

        Raises:
            TransientError: disk or network refuse, or another run is writing the same scene.
        """

    def turn(self) -> AbstractContextManager[None]:
        """Held while a document is read, changed and written: of several runs that do so, one at a time does.

        Raises:
            TransientError: the disk refuses.
        """

    def scenes(self) -> Iterator[str]:
        """Names of what may be scenes' folders, in order."""

    def surveyed(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with what finds its result as `finished` does: all of them by one look at the place."""

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""

    def read(self, name: str) -> bytes | None:
        """A document; None where there is none.

        Raises:
            TransientError: disk or network refuse.
        """

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document, text as UTF-8, whole or not at all; whoever does so has its turn.

        Raises:
            TransientError: disk or network refuse.
        """

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            TransientError: disk or network refuse.
        """

    def bring(self, name: str, folder: Path) -> Path:
        """A file on this machine: itself where it is here, else a copy below a folder.

        Raises:
            TransientError: disk or network refuse, or it is gone.
        """

    def put(self, name: str, path: Path) -> None:
        """Make a file of this machine appear under a name, whole or not at all.

        Raises:
            TransientError: disk or network refuse.
        """


def open_results(out: str | Path, work_dir: str | Path | None = None) -> Results:
    """The results under an address: a folder, or a place in an object store, made when something is written.

    Args:
        out: a path, or `s3://bucket/prefix` as text.
        work_dir: where results for an object store are made; None: below the system's temporary folder.

    Raises:
        SettingsError: no address that results can have.
    """
    text = str(out)
    scheme, is_address, _ = text.partition("://")
    if is_address and scheme.lower() == "s3":
        return StoreResults(text, work_dir)
    if is_address:
        raise SettingsError(f"{text}: results cannot be written to {scheme}://; name a folder or s3:// with --out")
    if text.startswith(COLLAPSED):
        raise SettingsError(
            f"{text}: an address that lost a slash, as in a Path; give it as text, e.g. s3://bucket/out"
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

    def place(self, name: str) -> Location:
        """Where a raster is, for opening it."""
        return resolve_location(self._folder / name)

    def folder(self, scene_id: str) -> Path | None:
        """The folder of a scene's result, there or not."""
        return self._folder / scene_id

    def former(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The folder of a scene's result, there or not."""
        return self.folder(scene_id)

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """See `publish.finished_report`."""
        return finished_report(self._folder / scene_id, key)

    def settled(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same: a folder is healed whenever it is looked at."""
        return self.finished(scene_id, key)

    def recovered(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same: a folder is healed whenever it is looked at."""
        return self.finished(scene_id, key)

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """See `publish.publishing`."""
        return publishing(self._folder / scene_id)

    def turn(self) -> AbstractContextManager[None]:
        """See `storage.files.directory_lock`."""
        return directory_lock(self._folder)

    def scenes(self) -> Iterator[str]:
        """Names of visible folders, in order."""
        return iter(sorted(path.name for path in self._folder.glob("[!.]*") if path.is_dir()))

    def surveyed(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with what finds its result."""
        return ((name, partial(self.finished, name)) for name in self.scenes())

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""
        folder = self._folder / scene_id
        return {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}

    def read(self, name: str) -> bytes | None:
        """A document; None where there is none."""
        path = self._folder / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TransientError(f"{path}: cannot be read: {error}; check the disk and its permissions") from error

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document into its folder, which is made if it is missing; what killed writers left of it goes."""
        path = self._folder / name
        ensure_dir(path.parent)
        remove_stale_partials(path)
        atomic_write(path, content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise TransientError(f"{path}: cannot be removed: {error}; check the disk and its permissions") from error

    def bring(self, name: str, folder: Path) -> Path:
        """The file itself."""
        return self._folder / name

    def put(self, name: str, path: Path) -> None:
        """Copy a file to its place, or leave it where it is there already."""
        target = self._folder / name
        if path != target:
            with atomic_path(target, ending=target.suffix) as beside:
                shutil.copyfile(path, beside)
