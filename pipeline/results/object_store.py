"""Results in an object store: written to a local work folder, uploaded, then published (see `stored_scene`)."""

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
from pipeline.results.lease import Lease, hold_lease
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
        """Parse the address; sends no request.

        Args:
            text: the address, as the operator wrote it.
            work_dir: local work folder; None: below the system's temporary folder.

        Raises:
            SettingsError: not a valid address of a bucket.
        """
        self._store, self._work_dir = StoreFolder(text), work_dir
        self.text = self._store.text

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the bucket does not exist, or these credentials may not use it."""
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

    def location(self, name: str) -> Location:
        """The location of a raster, for opening it."""
        return resolve_location(self._store.address(name))

    def folder(self, scene_id: str) -> Path | None:
        """None: a published result is not on this machine."""
        return None

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The previous result, downloaded if its mosaic has this key; deleted when the new one is published."""
        scene = self._scene(scene_id)
        report = scene.report
        if report is None or mosaic_key is None or report.record.get("mosaic_key") != mosaic_key:
            return None
        shutil.rmtree(self._fetch_folder(scene_id), ignore_errors=True)
        return scene.fetch(report, self._fetch_folder(scene_id))

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's complete result with this content key; None without one."""
        return self._scene(scene_id).find(key)[0]

    def committed(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same; also None while files are staged, or wait in the work folder to be uploaded."""
        found, is_pending = self._find(scene_id, key)
        return None if is_pending else found

    def recover(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """Publish or clean up what an interrupted run left, then return the same as `finished`."""
        found, is_pending = self._find(scene_id, key)
        if not is_pending:
            return found
        try:
            with hold_lease(self._store, scene_id, self._local) as lease:
                return self._recover(scene_id, key, lease)
        except TransientError as error:
            if found is None:
                raise
            log.warning("%s", error)
            return found

    @contextmanager
    def publishing(self, scene_id: str) -> Iterator[Path]:
        """A local work folder that becomes the result on success; the previous one stays until all files are uploaded.

        If the upload fails, the work folder is kept for the next run.

        Raises:
            TransientError: disk or network fail, or another run is writing the same scene.
        """
        local = self._local / scene_id
        with hold_lease(self._store, scene_id, self._local) as lease:
            self._scene(scene_id).complete(lease)
            shutil.rmtree(local, ignore_errors=True)
            try:
                with publishing(local) as work:
                    yield work
            finally:
                shutil.rmtree(self._fetch_folder(scene_id), ignore_errors=True)
            self._upload(scene_id, local, lease)

    def lock(self) -> AbstractContextManager[None]:
        """Excludes other runs on this machine only."""
        return directory_lock(self._local)

    def scenes(self) -> Iterator[str]:
        """Names of folders that may be scenes' results, in order."""
        return self._store.list_folders()

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`, which reads the report and lists no folder."""
        listed = self._store.list_by_folder()
        return ((name, partial(self._found_among, listed.get(name), name)) for name in self.scenes())

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""
        listed = self._store.list_files(scene_id).items()
        return {name: file.size_bytes for name, file in listed if not name.startswith(".")}

    def read(self, name: str) -> bytes | None:
        """The content of a document; None if it does not exist."""
        found = self._store.read(name)
        return None if found is None else found.content

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document, text as UTF-8; writes in a store are atomic."""
        self._store.write(name, content.encode() if isinstance(content, str) else content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        return self._store.size_of(name)

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
        """Upload a file; writes in a store are atomic."""
        self._store.upload({name: LocalFile(path=path, sha256=sha256_file(path))})

    @property
    def _local(self) -> Path:
        """The local work folder of this address, the same in every run."""
        identity = f"{store_access().endpoint} {self.text}"
        parent = _private_folder() if self._work_dir is None else Path(self._work_dir)
        return parent / hashlib.sha256(identity.encode()).hexdigest()[:16]

    def _fetch_folder(self, scene_id: str) -> Path:
        """Folder of a downloaded previous result."""
        return self._local / ".fetched" / scene_id

    def _scene(self, scene_id: str) -> StoredScene:
        return StoredScene(self._store, scene_id)

    def _found_among(
        self, listed: Mapping[str, StoredFile] | None, scene_id: str, key: str | None
    ) -> dict[str, object] | None:
        """As `finished`, by an earlier listing; a result that is incomplete in it is looked up again."""
        found = None if listed is None else self._scene(scene_id).finished(key, listed)
        return found if found is not None else self.finished(scene_id, key)

    def _find(self, scene_id: str, key: str | None) -> tuple[dict[str, object] | None, bool]:
        """As `finished`, and whether an interrupted run left something to publish or clean up."""
        found, is_staged = self._scene(scene_id).find(key)
        return found, is_staged or finished_report(self._local / scene_id, key) is not None

    def _recover(self, scene_id: str, key: str | None, lease: Lease) -> dict[str, object] | None:
        local, scene = self._local / scene_id, self._scene(scene_id)
        found, _ = scene.find(key)
        if found is None:
            scene.complete(lease)
            found, _ = scene.find(key)
        if found is None and finished_report(local, key) is not None:
            self._upload(scene_id, local, lease)
            found, _ = scene.find(key)
        if found is not None:
            scene.remove_staged()
            shutil.rmtree(local, ignore_errors=True)
        return found

    def _upload(self, scene_id: str, local: Path, lease: Lease) -> None:
        """Upload and publish a complete local result, then delete it."""
        self._scene(scene_id).stage(local, lease)
        self._scene(scene_id).complete(lease)
        shutil.rmtree(local, ignore_errors=True)


def _private_folder() -> Path:
    """A folder of this user in the system's temporary one, where any user can create folders of any name."""
    folder = Path(tempfile.gettempdir()) / f"scenemill-{os.getuid()}"
    ensure_dir(folder)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise SettingsError(f"{folder}: belongs to another user; set run.work_dir to another folder")
    folder.chmod(0o700)
    return folder
