"""Results in an object store: made in a local work folder, uploaded whole, then published (see `stored_scene`)."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import AccessError, MissingError, SettingsError, TransientError
from pipeline.results.lease import Lease, leased
from pipeline.results.publish import FindFinished, finished_report, publishing
from pipeline.results.stored_scene import StoredScene
from pipeline.storage import (
    LocalFile,
    Location,
    StoredFile,
    StoreFolder,
    directory_lock,
    ensure_dir,
    resolve_location,
    sha256_file,
    store_access,
)

log = logging.getLogger(__name__)


class StoreResults:
    """Results under an `s3://` address."""

    def __init__(self, text: str, work_dir: str | Path | None = None) -> None:
        """Name the place; the store is not asked yet.

        Args:
            text: the address, as the operator wrote it.
            work_dir: where results are made before they are uploaded; None: below the system's temporary folder.

        Raises:
            SettingsError: no address of a bucket.
        """
        self._store, self._work_dir = StoreFolder(text), work_dir
        self.text = self._store.text

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the bucket is not there, or these credentials may not use it."""
        try:
            self._store.check_reading()
            if writing:
                name = f".writable-{os.urandom(8).hex()}"
                self._store.write(name, b"")
                self._store.remove([name])
                ensure_dir(self._local)
        except (MissingError, AccessError) as error:
            raise SettingsError(f"--out {error}") from error

    def address(self, name: str) -> str:
        """The `s3://` address of a file or folder."""
        return self._store.address(name)

    def place(self, name: str) -> Location:
        """Where a raster is, for opening it."""
        return resolve_location(self._store.address(name))

    def folder(self, scene_id: str) -> Path | None:
        """None: nothing of a published result is on this machine."""
        return None

    def former(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The former result, fetched if its mosaic has this key; it goes when the new one is published."""
        scene = self._scene(scene_id)
        report = scene.report
        if report is None or mosaic_key is None or report.record.get("mosaic_key") != mosaic_key:
            return None
        shutil.rmtree(self._fetched(scene_id), ignore_errors=True)
        return scene.fetch(report, self._fetched(scene_id))

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's whole result with this content key; None where there is none that is believed."""
        return self._scene(scene_id).look(key)[0]

    def settled(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same; None, too, where something is staged, or waits in the work folder to be uploaded."""
        found, is_left = self._look(scene_id, key)
        return None if is_left else found

    def recovered(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same, after what a killed run left has been published, or swept away."""
        found, is_left = self._look(scene_id, key)
        if not is_left:
            return found
        try:
            with leased(self._store, scene_id, self._local) as lease:
                return self._recover(scene_id, key, lease)
        except TransientError as error:
            if found is None:
                raise
            log.warning("%s", error)
            return found

    @contextmanager
    def publishing(self, scene_id: str) -> Iterator[Path]:
        """A local work folder whose files are the scene's result on success; the former stays until all are uploaded.

        What could not be uploaded stays in the work folder, for the next run.

        Raises:
            TransientError: disk or network refuse, or another run is writing the same scene.
        """
        local = self._local / scene_id
        with leased(self._store, scene_id, self._local) as lease:
            self._scene(scene_id).complete(lease)
            shutil.rmtree(local, ignore_errors=True)
            try:
                with publishing(local) as work:
                    yield work
            finally:
                shutil.rmtree(self._fetched(scene_id), ignore_errors=True)
            self._upload(scene_id, local, lease)

    def turn(self) -> AbstractContextManager[None]:
        """Of the runs on this machine one at a time changes documents; those on others are not waited for."""
        return directory_lock(self._local)

    def scenes(self) -> Iterator[str]:
        """Names of what may be scenes' folders, in order."""
        return self._store.list_folders()

    def surveyed(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with what finds its result: it reads the report alone, and lists no folder."""
        listed = self._store.list_by_folder()
        return ((name, partial(self._found_among, listed.get(name), name)) for name in self.scenes())

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""
        listed = self._store.list_files(scene_id).items()
        return {name: file.size_bytes for name, file in listed if not name.startswith(".")}

    def read(self, name: str) -> bytes | None:
        """A document; None where there is none."""
        found = self._store.read(name)
        return None if found is None else found.content

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document, text as UTF-8; a store shows it whole or not at all."""
        self._store.write(name, content.encode() if isinstance(content, str) else content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        return self._store.size_of(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._store.remove([name])

    def bring(self, name: str, folder: Path) -> Path:
        """Fetch a file into a folder, under its name."""
        path = folder / name
        ensure_dir(path.parent)
        self._store.download(name, path)
        return path

    def put(self, name: str, path: Path) -> None:
        """Upload a file; a store shows it whole or not at all."""
        self._store.upload({name: LocalFile(path=path, sha256=sha256_file(path))})

    @property
    def _local(self) -> Path:
        """The folder of local work for this store; a rerun finds it again."""
        named = f"{store_access().endpoint} {self.text}"
        above = _private_folder() if self._work_dir is None else Path(self._work_dir)
        return above / hashlib.sha256(named.encode()).hexdigest()[:16]

    def _fetched(self, scene_id: str) -> Path:
        """Where a former result lies for a while."""
        return self._local / ".fetched" / scene_id

    def _scene(self, scene_id: str) -> StoredScene:
        return StoredScene(self._store, scene_id)

    def _found_among(
        self, listed: Mapping[str, StoredFile] | None, scene_id: str, key: str | None
    ) -> dict[str, object] | None:
        """What `finished` finds, by a listing of a moment ago: what that does not show whole is asked for anew."""
        found = None if listed is None else self._scene(scene_id).finished(key, listed)
        return found if found is not None else self.finished(scene_id, key)

    def _look(self, scene_id: str, key: str | None) -> tuple[dict[str, object] | None, bool]:
        """What `finished` finds, and whether a killed run left something to publish or to sweep away."""
        found, is_staged = self._scene(scene_id).look(key)
        return found, is_staged or finished_report(self._local / scene_id, key) is not None

    def _recover(self, scene_id: str, key: str | None, lease: Lease) -> dict[str, object] | None:
        local, scene = self._local / scene_id, self._scene(scene_id)
        found, _ = scene.look(key)
        if found is None:
            scene.complete(lease)
            found, _ = scene.look(key)
        if found is None and finished_report(local, key) is not None:
            self._upload(scene_id, local, lease)
            found, _ = scene.look(key)
        if found is not None:
            scene.sweep()
            shutil.rmtree(local, ignore_errors=True)
        return found

    def _upload(self, scene_id: str, local: Path, lease: Lease) -> None:
        """Put a whole local result in place, and free the disk."""
        self._scene(scene_id).stage(local, lease)
        self._scene(scene_id).complete(lease)
        shutil.rmtree(local, ignore_errors=True)


def _private_folder() -> Path:
    """Our own folder in the system's temporary one, where anybody can make folders of any name."""
    folder = Path(tempfile.gettempdir()) / f"scenemill-{os.getuid()}"
    ensure_dir(folder)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise SettingsError(f"{folder}: belongs to somebody else; name another folder by run.work_dir")
    folder.chmod(0o700)
    return folder
