"""Results of scenes in an object store: written to a local work folder, uploaded, then published.

See `stored_scene` for the protocol.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import TransientError
from pipeline.results.documents import work_folder_of
from pipeline.results.lease import Lease, hold_lease
from pipeline.results.publish import finished_report, publishing, recover_report
from pipeline.results.report import SceneReport
from pipeline.results.scenes import FindFinished
from pipeline.results.stored_scene import StoredScene
from pipeline.storage import StoredFile, StoreFolder

log = logging.getLogger(__name__)


class StoreScenes:
    """Results of scenes under an `s3://` address."""

    def __init__(self, store: StoreFolder, work_dir: str | Path | None = None) -> None:
        """`work_dir` holds results until they are uploaded, see `work_folder_of`."""
        self._store, self._work_dir = store, work_dir

    def folder(self, scene_id: str) -> Path | None:
        """None: a published result is not on this machine."""
        return None

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The previous result, downloaded if its mosaic has this key; deleted when the new one is published."""
        scene = self._scene(scene_id)
        report = scene.report
        if report is None or mosaic_key is None or report.record.get("mosaic_key") != mosaic_key:
            return None
        return scene.fetch(report, self._fetch_folder(scene_id))

    def finished(self, scene_id: str, key: str | None) -> SceneReport | None:
        """The report of a scene's complete result with this content key; None without one."""
        return self._scene(scene_id).find(key)[0]

    def committed(self, scene_id: str, key: str | None) -> SceneReport | None:
        """The same; also None while files are staged, or wait in the work folder to be uploaded."""
        found, is_pending = self._find(scene_id, key)
        return None if is_pending else found

    def recover(self, scene_id: str, key: str | None) -> SceneReport | None:
        """Publish or clean up what an interrupted run left, then return the same as `finished`."""
        found, is_pending = self._find(scene_id, key)
        if not is_pending:
            return found
        try:
            with hold_lease(self._store, scene_id, self._local) as lease:
                return self._recover(scene_id, key, lease)
        except TransientError as error:
            # A complete result is usable even if it cannot be cleaned up now, e.g. under another run's lease.
            if found is None:
                raise
            log.warning("%s", error)
            return found

    @contextmanager
    def publishing(self, scene_id: str) -> Iterator[Path]:
        """A local work folder that becomes the result on success; the previous one stays until all files are uploaded.

        If the upload fails, the work folder is kept for the next run.
        """
        local = self._local / scene_id
        with hold_lease(self._store, scene_id, self._local) as lease:
            # Finish or remove what an interrupted run staged, before new files are staged.
            self._scene(scene_id).complete(lease)
            shutil.rmtree(local, ignore_errors=True)
            try:
                with publishing(local) as work:
                    yield work
            finally:
                shutil.rmtree(self._fetch_folder(scene_id), ignore_errors=True)

            # The local result is complete now: after a failed upload, `recover` sends it without computing again.
            self._upload(scene_id, local, lease)

    def ids(self) -> Iterator[str]:
        """Names of folders that may be scenes' results, in order."""
        return self._store.list_folders()

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`, which reads the report and lists no folder."""
        listed = self._store.list_by_folder()
        return ((name, partial(self._found_among, listed.get(name), name)) for name in self.ids())

    @property
    def _local(self) -> Path:
        return work_folder_of(self._store, self._work_dir)

    def _fetch_folder(self, scene_id: str) -> Path:
        """Folder of a downloaded previous result."""
        return self._local / ".fetched" / scene_id

    def _scene(self, scene_id: str) -> StoredScene:
        return StoredScene(self._store, scene_id)

    def _found_among(
        self, listed: Mapping[str, StoredFile] | None, scene_id: str, key: str | None
    ) -> SceneReport | None:
        """As `finished`, by an earlier listing; a result that is incomplete in it is looked up again."""
        found = None if listed is None else self._scene(scene_id).finished(key, listed)
        return found if found is not None else self.finished(scene_id, key)

    def _find(self, scene_id: str, key: str | None) -> tuple[SceneReport | None, bool]:
        """As `finished`, and whether an interrupted run left something to publish or clean up."""
        found, is_staged = self._scene(scene_id).find(key)
        return found, is_staged or finished_report(self._local / scene_id, key, check_edits=False) is not None

    def _recover(self, scene_id: str, key: str | None, lease: Lease) -> SceneReport | None:
        local, scene = self._local / scene_id, self._scene(scene_id)

        # Look again under the lease: another run may have published since.
        found, _ = scene.find(key)

        # A staged result needs only copies inside the store, a local one an upload.
        if found is None:
            scene.complete(lease)
            found, _ = scene.find(key)
        if found is None and recover_report(local, key) is not None:
            self._upload(scene_id, local, lease)
            found, _ = scene.find(key)

        # Staged and local files go only once the result is published.
        if found is not None:
            scene.remove_staged()
            shutil.rmtree(local, ignore_errors=True)
        return found

    def _upload(self, scene_id: str, local: Path, lease: Lease) -> None:
        """Upload and publish a complete local result, then delete it."""
        self._scene(scene_id).stage(local, lease)
        self._scene(scene_id).complete(lease)
        shutil.rmtree(local, ignore_errors=True)
